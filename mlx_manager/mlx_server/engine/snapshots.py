"""Where a prompt is worth a snapshot of what can't be cut."""

from __future__ import annotations

from collections.abc import Iterable

# A prompt is read in no shorter pieces than this for a snapshot between them, and for no more snapshots than this.
LEAST_SEGMENT_TOKENS = 64
MOST_SNAPSHOTS = 8


def snapshot_places(borders: Iterable[int], begin: int, end: int) -> list[int]:
    """Return those of `borders` between `begin` and `end` that are worth a snapshot, in order.

    The last ones, as prompts mostly go on from there, and the first, behind the instructions that chats share. There
    is one at `end` in any case.
    """
    places = list[int]()
    following = end
    for border in sorted(set(borders), reverse=True):
        if begin < border <= following - LEAST_SEGMENT_TOKENS:
            places.append(border)
            following = border
    return [*places[: MOST_SNAPSHOTS - 1], *places[MOST_SNAPSHOTS - 1 :][-1:]][::-1]
