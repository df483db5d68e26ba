"""The vectors of one request, as the API process receives them."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable

from mlx_manager.chat.events import TraceContext
from mlx_manager.errors import GenerationFailed, MlxManagerError
from mlx_manager.mlx_server.engine.messages import Embedded, Vectors


class VectorStream:
    """Gathers the vectors of `inputs` inputs, which come batch by batch, in whatever order.

    After the last `ended` holds the engine's record. Leaving the `async with` before that gives the rest up. `owner` is
    whom it works for, `ahead` the owners of those who were there when it came.
    """

    def __init__(
        self,
        sequence_id: int,
        inputs: int,
        abandon: Callable[[VectorStream], None],
        owner: TraceContext | None = None,
        ahead: tuple[TraceContext, ...] = (),
    ) -> None:
        self.sequence_id = sequence_id
        self.owner = owner
        self.ended: Embedded | None = None
        self.admitted_at_ns: int | None = None
        self._ahead = ahead
        self._has_waited = True
        self._abandon = abandon
        self._is_abandoned = False
        self._error: MlxManagerError | None = None
        self._vectors: list[array[float]] = [array("f")] * inputs
        self._over = asyncio.Event()

    async def __aenter__(self) -> VectorStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the request up unless it has ended; the engine takes none of its inputs into another batch."""
        if self.ended is None and self._error is None and not self._is_abandoned:
            self._is_abandoned = True
            self._abandon(self)

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

    @property
    def waited_behind(self) -> tuple[TraceContext, ...]:
        """The owners of those for whose batches it waits or has waited; none when it was taken at once."""
        return self._ahead if self._has_waited else ()

    def feed_admitted(self, at_ns: int, has_waited: bool) -> None:
        """Its first inputs were in the batch that was begun at `at_ns`."""
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

    def fail(self, error: MlxManagerError) -> None:
        """The engine process is gone; nothing more will come."""
        self._error = error
        self._over.set()

    def expire(self, error: MlxManagerError) -> None:
        """Give the request up, and let its reader meet `error`."""
        if self.ended is None and self._error is None:
            self.close()
            self.fail(error)
