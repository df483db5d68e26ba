"""Sequences that have their place and wait for files of the prefix cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlx_manager.mlx_server.engine.prefix_disk import Fetch
from mlx_manager.mlx_server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Restored:
    """A sequence whose files are there, and whether it had to wait for its place.

    The `fetches` are to be held until it has begun: so it finds them read.
    """

    sequence: Sequence
    fetches: list[Fetch]
    has_waited: bool


class Restoring:
    """Who waits for which files."""

    def __init__(self) -> None:
        self._waiting: dict[int, Restored] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def has_news(self) -> bool:
        """Whether a file is there that somebody waits for next, or can't be read."""
        return any(_next_is_read(waiting.fetches) for waiting in self._waiting.values())

    def add(self, sequence: Sequence, fetches: list[Fetch], *, has_waited: bool) -> None:
        """Have a sequence wait."""
        sequence.is_restoring = True
        self._waiting[sequence.id] = Restored(sequence, fetches, has_waited)

    def forget(self, sequence_id: int) -> None:
        """A sequence has left the engine."""
        self._waiting.pop(sequence_id, None)

    def restored(self, take: Callable[[list[Fetch]], bool]) -> list[Restored]:
        """Have what was read taken in, and return those who wait no longer, the first ones first."""
        restored = list[Restored]()
        for waiting in list(self._waiting.values()):
            if not take(waiting.fetches):
                if _next_is_read(waiting.fetches):
                    # As much was taken in as one step may.
                    break
                continue
            del self._waiting[waiting.sequence.id]
            waiting.sequence.is_restoring = False
            restored.append(waiting)
        return restored


def _next_is_read(fetches: list[Fetch]) -> bool:
    return next((one.is_read for one in fetches if not one.is_taken), True)
