"""The moment by which a request must be answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from mlx_manager.errors import RequestTimeout
from mlx_manager.mlx_server.workers.stream import TokenStream


class Deadline:
    """`limit_s` from now. Belongs to one request and the running event loop; `remedy` tells its client what to do."""

    def __init__(self, limit_s: float, remedy: str = "Ask for fewer tokens") -> None:
        self._at_s = asyncio.get_running_loop().time() + limit_s
        self._is_over = False
        self._error = RequestTimeout(
            f"The answer took longer than {limit_s:g} s, the limit of this endpoint. {remedy}, or have the "
            "administrator raise it (docs/settings.md)."
        )

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Interrupt the block when the time is up. It must not hold a `yield` of a generator."""
        limit = asyncio.timeout_at(self._at_s)
        try:
            async with limit:
                yield
        except TimeoutError:
            if limit.expired():
                raise self._error from None
            raise

    @contextmanager
    def kept_by(self, tokens: TokenStream) -> Iterator[None]:
        """End the sequence when the time is up, even while a slow reader keeps us from looking at the clock."""
        alarm = asyncio.get_running_loop().call_at(self._at_s, self._end, tokens)
        try:
            yield
        except GeneratorExit:
            # A reader so slow that it never met the error gives up on the stream; what ended the work is the time.
            if self._is_over:
                raise self._error from None
            raise
        finally:
            alarm.cancel()

    def _end(self, tokens: TokenStream) -> None:
        self._is_over = tokens.ended is None
        tokens.expire(self._error)
