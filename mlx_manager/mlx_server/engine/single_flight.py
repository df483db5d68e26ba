"""Prompts that arrive together and begin alike: one is read, and the others wait for it and go on from there.

Pure: no tensors, no clock, no locks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mlx_manager.mlx_server.engine.sequence import Sequence

# To wait is worth it for this many tokens: fewer are read beside each other in the time of a step.
LEAST_FOLLOWED_TOKENS = 256
# Tokens that are compared at once.
STRIDE = 256


class Following:
    """Who waits for whom, and up to which token of the other's prompt."""

    def __init__(self) -> None:
        self._followers: dict[int, tuple[Sequence, Sequence, int]] = {}
        # Nobody waits twice for the same one, whatever became of what that one has read.
        self._was_followed: dict[int, set[int]] = {}

    def follow(
        self,
        sequence: Sequence,
        prefills: Iterable[Sequence],
        stored_tokens: int,
        usable: Callable[[int, int], int],
    ) -> Sequence | None:
        """Have `sequence` wait for the one of `prefills` that saves it most; None when none is worth it.

        `stored_tokens` of its prompt need no computing as it is; `usable` says how many of the first so many tokens of
        another's prompt can be gone on from once they are read.
        """
        tokens = sequence.submit.known_token_ids
        followed = self._was_followed.setdefault(sequence.id, set())
        best, best_tokens = None, stored_tokens + LEAST_FOLLOWED_TOKENS - 1
        for other in prefills:
            if other.id in followed:
                continue
            shared = min(common(tokens, other.submit.known_token_ids), len(tokens) - 1)
            if shared > best_tokens and (found := usable(other.id, shared)) > best_tokens:
                best, best_tokens = other, found
        if best is None:
            del self._was_followed[sequence.id]
            return None
        followed.add(best.id)
        self._followers[sequence.id] = (sequence, best, best_tokens)
        return best

    def is_following(self, sequence_id: int) -> bool:
        """Whether a sequence waits for another one."""
        return sequence_id in self._followers

    def wanted(self) -> Iterable[tuple[Sequence, Sequence, int]]:
        """Return who waits, for whom, and up to which token."""
        return list(self._followers.values())

    def release(self, sequence_id: int) -> None:
        """A sequence waits no longer."""
        self._followers.pop(sequence_id, None)

    def forget(self, sequence_id: int) -> None:
        """A sequence has left the engine while it waited, or is not here at all."""
        self.release(sequence_id)
        self._was_followed.pop(sequence_id, None)


def common(one: list[int], other: list[int]) -> int:
    """Return how many tokens two prompts have in common from the beginning."""
    at, shortest = 0, min(len(one), len(other))
    while at < shortest and one[at : at + STRIDE] == other[at : at + STRIDE]:
        at += STRIDE
    while at < shortest and one[at] == other[at]:
        at += 1
    return min(at, shortest)
