"""The moment by which a request must be answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from mlx_manager.errors import MlxManagerError, RequestTimeout
from mlx_manager.mlx_server.workers.stream import TokenStream


class Deadline:
    """`limit_s` from now, or earlier, when somebody brings it forward.

    Belongs to one request and the running event loop; `remedy` tells its client what to do. `streams` are the sequences
    that it will end.
    """

    def __init__(self, limit_s: float, remedy: str = "Ask for fewer tokens") -> None:
        self._at_s = asyncio.get_running_loop().time() + limit_s
        self._is_over = False
        self._limit: asyncio.Timeout | None = None
        self.streams = list[TokenStream]()
        self._error: MlxManagerError = RequestTimeout(
            f"The answer took longer than {limit_s:g} s, the limit of this endpoint. {remedy}, or have the "
            "administrator raise it (docs/settings.md)."
        )

    def bring_forward(self, error: MlxManagerError) -> None:
        """The time is up now, and `error` is what the request meets."""
        self._error = error
        self._at_s = asyncio.get_running_loop().time()
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(self._at_s)
        self._end(self.streams)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Interrupt the block when the time is up. It must not hold a `yield` of a generator."""
        limit = asyncio.timeout_at(self._at_s)
        try:
            async with limit:
                self._limit = limit
                try:
                    yield
                finally:
                    self._limit = None
        except TimeoutError:
            if limit.expired():
                raise self._error from None
            raise

    @contextmanager
    def kept_by(self, streams: Sequence[TokenStream]) -> Iterator[None]:
        """End the sequences when the time is up, even while a slow reader keeps us from looking at the clock."""
        alarm = asyncio.get_running_loop().call_at(self._at_s, self._end, streams)
        self.streams.extend(streams)
        try:
            yield
        except GeneratorExit:
            # A reader so slow that it never met the error gives up on the stream; what ended the work is the time.
            if self._is_over:
                raise self._error from None
            raise
        finally:
            alarm.cancel()
            self.streams = [one for one in self.streams if one not in streams]

    def _end(self, streams: Sequence[TokenStream]) -> None:
        self._is_over = any(tokens.ended is None for tokens in streams)
        for tokens in streams:
            tokens.expire(self._error)
