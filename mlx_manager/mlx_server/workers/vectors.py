"""The vectors of one request, as the API process receives them."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable

from mlx_manager.chat.events import TraceContext
from mlx_manager.errors import GenerationFailed
from mlx_manager.mlx_server.engine.messages import Embed, Embedded, Vectors
from mlx_manager.mlx_server.workers.resume import Resumable


class VectorStream(Resumable[Embed]):
    """Gathers the vectors of a request's inputs, which come batch by batch, in whatever order.

    After the last `ended` holds the engine's record. Leaving the `async with` before that gives the rest up. A fresh
    process computes all of them again.
    """

    def __init__(
        self,
        embed: Embed,
        abandon: Callable[[Resumable[Embed]], None],
        owner: TraceContext | None = None,
        ahead: tuple[TraceContext, ...] = (),
    ) -> None:
        super().__init__(embed, abandon, owner, ahead)
        self.ended: Embedded | None = None
        self.admitted_at_ns: int | None = None
        self._vectors: list[array[float]] = [array("f")] * len(embed.token_ids)
        self._over = asyncio.Event()

    async def __aenter__(self) -> VectorStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.ended is not None or self._error is not None

    async def all(self) -> list[array[float]]:
        """Wait for the vectors of all inputs, in their order. Raises what ended the work before that."""
        await self._over.wait()
        if self._error is not None:
            raise self._error
        if self.ended is not None and self.ended.reason == "failed":
            raise GenerationFailed(
                f"The engine could not compute this request ({self.ended.detail}). The server's log has the details."
            )
        return self._vectors

    def feed_admitted(self, at_ns: int, has_waited: bool) -> None:
        """Its first inputs were in the batch that was begun at `at_ns`."""
        if self.admitted_at_ns is None:
            self.admitted_at_ns = at_ns
            self._has_waited = has_waited

    def feed(self, vectors: Vectors) -> None:
        """Some more vectors."""
        numbers = array("f", vectors.numbers)
        size = len(numbers) // len(vectors.positions)
        for row, position in enumerate(vectors.positions):
            self._vectors[position] = numbers[row * size : (row + 1) * size]

    def feed_end(self, ended: Embedded) -> None:
        """The request has left the engine."""
        self.ended = ended
        self._over.set()
        # Not with its first vectors: a fresh process begins with all of them again.
        self._went_on(time.monotonic_ns())

    def _news(self) -> None:
        self._over.set()
