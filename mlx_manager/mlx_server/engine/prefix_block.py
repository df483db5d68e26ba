"""What the prefix cache keeps: a tree of blocks with snapshots between them, and shelves that know the oldest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal

from mlx_manager.mlx_server.engine.block_file import Label
from mlx_manager.mlx_server.engine.row_state import State


@dataclass(slots=True, eq=False)
class Kept:
    """The arrays of a block, or of the snapshot that is `behind` some tokens after those of the block.

    They are in memory, or None and in the file that has `label`, or both.
    """

    block: Block
    behind: tuple[int, ...] | None
    arrays: list[State] | None
    nbytes: int
    label: Label | None = None
    file_bytes: int = 0


@dataclass(slots=True, eq=False)
class Block:
    """Some tokens behind those of `parent`, and what can be cut of them; what goes on from there, and snapshots.

    Snapshots are found by the tokens behind this block that they are behind: 1 to 256 of them.
    """

    tokens: tuple[int, ...]
    parent: Block | None
    own: Kept = field(init=False)
    children: list[Block] = field(default_factory=list)
    snapshots: dict[tuple[int, ...], Kept] = field(default_factory=dict)


class Shelf:
    """What is kept somewhere, the longest unused first, and how many bytes that is by the field named `size`."""

    def __init__(self, size: Literal["nbytes", "file_bytes"]) -> None:
        self.nbytes = 0
        self._size = attrgetter(size)
        self._order = OrderedDict[Kept, None]()

    def __iter__(self) -> Iterator[Kept]:
        return iter(list(self._order))

    def put(self, kept: Kept) -> None:
        """Keep something; it was just used."""
        self._order[kept] = None
        self.nbytes += self._size(kept)

    def use(self, kept: Kept) -> None:
        """Remember that something was used, if it is here."""
        if kept in self._order:
            self._order.move_to_end(kept)

    def take(self, kept: Kept) -> None:
        """Keep something no longer, if it is here."""
        if kept in self._order:
            del self._order[kept]
            self.nbytes -= self._size(kept)

    def oldest(self) -> Kept:
        """Return what was used longest ago. Raises StopIteration when nothing is here."""
        return next(iter(self._order))
