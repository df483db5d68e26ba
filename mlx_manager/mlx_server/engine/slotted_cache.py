"""Keys and values of rows that decode together, in buffers in which a row's place is a *slot*.

All rows end in the same column, so that a step writes one column of every slot. Who joins is written into a free slot,
and who ends leaves its slot as it is: neither touches what the other rows have. Only where there is no room for one
more column, one more slot or a longer row, all of it is copied into new buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache

from mlx_manager.mlx_server.engine.messages import (
    KV_STEP_TOKENS,
    SLOTS_BY_SPARE_ONE,
    SPARE_COLUMNS,
)
from mlx_manager.mlx_server.engine.quantised_kv import Quantisation, QuantisedCache


@dataclass(frozen=True, slots=True)
class Move:
    """What goes into new buffers: the slots `kept`, of which `columns` are used; there they end before `end`."""

    kept: list[int]
    columns: slice
    end: int
    new_slots: int
    new_columns: int


class Layout:
    """Where rows are in the buffers of all layers: in which slots, and from which column on."""

    def __init__(self) -> None:
        # What rows use of the columns: from the longest one's first token to behind everybody's last.
        self.begin = 0
        self.end = 0
        # Steps that were made, ever, and how many columns the one that is being made writes.
        self.step = 0
        self.width = 1
        self.new_slots = 0
        self.new_columns = 0
        # The first column of the row in each slot that a step computes; of one that is over where no row is.
        self._starts: list[int] = []
        self._free: set[int] = set()
        self._offsets: mx.array | None = None

    @property
    def slots(self) -> int:
        """How many slots a step computes."""
        return len(self._starts)

    @property
    def free(self) -> int:
        """In how many of them no row is."""
        return len(self._free)

    def has_room(self, lengths: Sequence[int] = (), columns: int = 1) -> bool:
        """Whether rows with so many tokens can join, and a step write so many columns, in these buffers."""
        slots = self.new_slots - self.slots + len(self._free)
        is_room = self.end + columns <= self.new_columns
        return is_room and len(lengths) <= slots and max(lengths, default=0) <= self.end

    def take(self, tokens: int) -> int:
        """Return the slot of a row that joins with so many tokens."""
        if not self._free:
            self._free.add(self.slots)
            self._starts.append(0)
        slot = min(self._free)
        self._free.remove(slot)
        self._starts[slot] = self.end - tokens
        self._changed()
        return slot

    def leave(self, slot: int) -> None:
        """The row in a slot is over."""
        self._free.add(slot)
        while self.slots - 1 in self._free:
            self._free.remove(self.slots - 1)
            self._starts.pop()
        self._changed()

    def move(self, lengths: Sequence[int]) -> Move:
        """Take new buffers, with room for what is there and for rows with so many tokens, and say what goes there."""
        kept = [slot for slot in range(self.slots) if slot not in self._free]
        known = [self.end - self._starts[slot] for slot in kept]
        columns, rows = slice(self.begin, self.end), len(kept) + len(lengths)
        self.end = max([*known, *lengths], default=0)
        self.new_slots, self.new_columns = self._needed(rows, self.end)
        self._starts, self._free = [self.end - length for length in known], set()
        self._changed()
        return Move(kept, columns, self.end, self.new_slots, self.new_columns)

    @property
    def could_shrink(self) -> bool:
        """Whether new buffers for the rows that are there would be smaller."""
        rows = self.slots - self.free
        slots, columns = self._needed(rows, self.end - self.begin)
        return slots * columns < self.new_slots * self.new_columns

    def row(self, slot: int, tokens: int | None = None) -> slice:
        """Return the columns of a row, or of its first tokens."""
        start = self._starts[slot]
        return slice(start, self.end if tokens is None else start + tokens)

    def advance(self) -> None:
        """A step has written its columns in every layer."""
        self.end += self.width
        self.step += 1
        self._offsets = None

    def take_back(self, columns: int) -> None:
        """Let the last columns be written again."""
        self.end -= columns
        self._offsets = None

    @property
    def offsets(self) -> mx.array:
        """How many tokens each slot has, `[slots]`."""
        if self._offsets is None:
            self._offsets = mx.array([self.end - start for start in self._starts])
        return self._offsets

    def mask(self, window_size: int | None, *, is_needed: bool) -> mx.array | None:
        """Return what a step's tokens may look at, `[slots, 1, tokens, columns]`; None where it is everything."""
        # What is computed in a free slot is nobody's; it may look at everything, as a softmax of nothing is no number.
        padding = [
            0 if slot in self._free else start - self.begin
            for slot, start in enumerate(self._starts)
        ]
        if window_size is None and self.width == 1 and not is_needed and not any(padding):
            return None
        used = self.end - self.begin
        mask: mx.array = create_causal_mask(
            self.width, offset=used, window_size=window_size, left_padding=mx.array(padding)
        )
        return mask

    def _needed(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the slots and columns of new buffers for so many rows, the longest of which has so many tokens."""
        pieces = -(-(tokens + max(SPARE_COLUMNS, self.width)) // KV_STEP_TOKENS)
        return rows + rows // SLOTS_BY_SPARE_ONE, pieces * KV_STEP_TOKENS

    def _changed(self) -> None:
        taken = (start for slot, start in enumerate(self._starts) if slot not in self._free)
        self.begin = min(taken, default=self.end)
        self._offsets = None


class SlottedCache:
    """The buffers of one layer, `[slots, heads, columns, width]`; to mlx-lm's models it is a cache as any other."""

    def __init__(self, layout: Layout) -> None:
        # Of keys and values; none before the first are written.
        self._buffers: list[mx.array] = []
        self._layout = layout
        self._written_step = -1

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    @property
    def offset(self) -> mx.array:
        """How many tokens each slot has, `[slots]`; with the step's own once that is written."""
        offsets = self._layout.offsets
        return offsets + self._layout.width if self._written_step == self._layout.step else offsets

    def make_mask(
        self, tokens: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | None:
        """Return what a step's tokens of each slot may look at; see `Layout.mask`."""
        assert tokens == self._layout.width, "a step writes as many columns as it was to"
        return self._layout.mask(window_size, is_needed=return_array)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Write the next columns, `[slots, heads, tokens, width]`, and return all that rows use, with those."""
        layout = self._layout
        columns = slice(layout.end, layout.end + layout.width)
        self._write(slice(0, layout.slots), columns, self._made(keys, values))
        self._written_step = layout.step
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[Any, Any]:
        """Return all that rows use after this layer's part of a step."""
        used = slice(self._layout.begin, self._layout.end + self._layout.width)
        return self._both([buffer[: self._layout.slots, :, used] for buffer in self._buffers])

    def put(self, slot: int, keys: mx.array, values: mx.array) -> None:
        """Write a row that joins, `[1, heads, tokens, width]`, into the slot that the layout gave it.

        They are as the caches that read it kept them.
        """
        self._write(slice(slot, slot + 1), self._layout.row(slot), self._kept(keys, values))

    def extract(self, slot: int, tokens: int) -> Any:
        """Return a row's first tokens in a cache of its own, whose arrays are yet to be copied out of the buffers."""
        row = self._new_row()
        if self._buffers:
            columns = self._layout.row(slot, tokens)
            parts = [buffer[slot : slot + 1, :, columns] for buffer in self._buffers]
            row.keys, row.values = self._of_row(parts)
            row.offset = columns.stop - columns.start
        return row

    def move(self, move: Move) -> None:
        """Copy what is kept into new buffers."""
        self._buffers = [_moved(buffer, move) for buffer in self._buffers]

    def clear(self) -> None:
        """Give the buffers back."""
        self._buffers = []

    def _write(self, slots: slice, columns: slice, parts: Sequence[mx.array]) -> None:
        if not self._buffers:
            self._buffers = [self._new(part) for part in parts]
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer[slots, :, columns] = part

    def _new(self, like: mx.array) -> mx.array:
        _, heads, _, width = like.shape
        layout = self._layout
        return mx.zeros((layout.new_slots, heads, layout.new_columns, width), like.dtype)

    def _made(self, keys: mx.array, values: mx.array) -> Sequence[mx.array]:
        """Return what goes into the buffers of keys and values that a layer has made."""
        return keys, values

    def _kept(self, keys: mx.array, values: mx.array) -> Sequence[mx.array]:
        """Return what goes into the buffers of those that a row's own cache has kept."""
        return keys, values

    def _both(self, parts: list[mx.array]) -> tuple[Any, Any]:
        """Return keys and values as attention takes them, of what is in the buffers."""
        keys, values = parts
        return keys, values

    def _of_row(self, parts: list[mx.array]) -> tuple[mx.array, mx.array]:
        """Return keys and values as a row's own cache keeps them, of what is in the buffers."""
        keys, values = parts
        return keys, values

    def _new_row(self) -> KVCache:
        return KVCache()


class QuantisedSlots(SlottedCache):
    """Buffers of quantised numbers, scales and biases, which attention takes as they are: mlx-lm asks for `bits`."""

    def __init__(self, layout: Layout, quantisation: Quantisation) -> None:
        super().__init__(layout)
        self.bits = quantisation.bits
        self.group_size = quantisation.group_size
        self._quantisation = quantisation

    def _made(self, keys: mx.array, values: mx.array) -> Sequence[mx.array]:
        return *self._quantisation.quantise(keys), *self._quantisation.quantise(values)

    def _kept(self, keys: mx.array, values: mx.array) -> Sequence[mx.array]:
        return *self._quantisation.parts(keys), *self._quantisation.parts(values)

    def _both(self, parts: list[mx.array]) -> tuple[Any, Any]:
        return tuple(parts[:3]), tuple(parts[3:])

    def _of_row(self, parts: list[mx.array]) -> tuple[mx.array, mx.array]:
        keys, key_scales, key_biases, values, value_scales, value_biases = parts
        words = self._quantisation.words
        return (
            words((keys, key_scales, key_biases)),
            words((values, value_scales, value_biases)),
        )

    def _new_row(self) -> KVCache:
        return QuantisedCache(self._quantisation)


def slots_of(layout: Layout, quantisation: Quantisation | None) -> SlottedCache:
    """Return the buffers of one layer, for whole keys and values or for quantised ones."""
    return SlottedCache(layout) if quantisation is None else QuantisedSlots(layout, quantisation)


def _moved(buffer: mx.array, move: Move) -> mx.array:
    kept = buffer[mx.array(move.kept, mx.int32)][:, :, move.columns]
    left = move.end - kept.shape[2]
    right, below = move.new_columns - move.end, move.new_slots - len(move.kept)
    moved: mx.array = mx.pad(kept, [(0, below), (0, 0), (left, right), (0, 0)])
    return moved
