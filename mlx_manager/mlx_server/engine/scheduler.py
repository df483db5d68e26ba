"""Decide which sequences wait, prefill or decode, and how much prompt one step may compute.

Pure: no tensors, no clock, no locks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from mlx_manager.mlx_server.engine.sequence import Sequence

MAX_PREFILLS = 8
MIN_CHUNK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows that run together, and prompt tokens per step while others decode or wait, and while alone."""

    max_batch: int
    prefill_chunk_tokens: int
    idle_prefill_chunk_tokens: int


class Scheduler:
    """First come, first served, into a batch of bounded width."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running or self._waiting)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self._waiting.append(sequence)

    def remove(self, sequence_id: int) -> Sequence | None:
        """Take a sequence out, wherever it is; None when it is not here any more."""
        if sequence_id in self.running:
            return self.running.pop(sequence_id)
        for sequence in self._waiting:
            if sequence.id == sequence_id:
                self._waiting.remove(sequence)
                return sequence
        return None

    def admit(self) -> list[Sequence]:
        """Move from the queue into the batch what there is room for, and return it."""
        prefilling = len(self._prefilling())
        room = min(self._limits.max_batch - len(self.running), MAX_PREFILLS - prefilling)
        admitted = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        self.running.update((sequence.id, sequence) for sequence in admitted)
        return admitted

    def chunk_tokens(self) -> int:
        """Return how many tokens of *each* prompt the next step may compute.

        mlx-lm computes one chunk of every prompt that prefills, padded to the longest chunk: the budget is shared
        out so that one long prompt beside seven short ones costs a step's budget and not eight of them.
        """
        prefilling = len(self._prefilling())
        if len(self.running) == 1 and not self._waiting:
            return self._limits.idle_prefill_chunk_tokens
        limit = self._limits.prefill_chunk_tokens
        return max(min(MIN_CHUNK_TOKENS, limit), limit // max(prefilling, 1))

    def prefill_tokens(self, chunk_tokens: int) -> int:
        """Return how many prompt tokens a step computes at most, with chunks of this size."""
        return sum(
            min(chunk_tokens, len(sequence.submit.token_ids)) for sequence in self._prefilling()
        )

    def _prefilling(self) -> list[Sequence]:
        return [sequence for sequence in self.running.values() if not sequence.is_decoding]
