"""Keys and values of what was read before: a prompt that begins like an earlier one isn't computed again.

A tree of blocks of up to 256 tokens (mlx-lm's own step): a shared beginning is stored once, and each way on from it is
a child. Any part of a block can be used: attention's keys and values up to a token depend on nothing behind it.
Bounded in bytes; what was used longest ago goes first, and never before what goes on from it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import mlx.core as mx

BLOCK_TOKENS = 256
# Of one layer: keys and values, `[1, heads, tokens, width]`.
Layer = tuple[mx.array, mx.array]
Layers = list[Layer]
MissReason = Literal["off", "unsupported_model", "nothing_stored", "diverged", "prompt_logprobs"]


@dataclass(slots=True, eq=False)
class Block:
    """Some tokens behind those of `parent`, and what each layer holds of them."""

    tokens: tuple[int, ...]
    layers: Layers
    parent: Block | None
    children: list[Block] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


@dataclass(frozen=True, slots=True)
class Match:
    """How many tokens of a prompt are stored, the layers that hold them, and why not more."""

    tokens: int
    layers: Layers
    reason: MissReason | None


class PrefixCache:
    """What one model has read, up to `budget_bytes`. Belongs to the engine's thread."""

    def __init__(self, budget_bytes: int) -> None:
        self.nbytes = 0
        self._budget_bytes = budget_bytes
        self._root = Block((), [], None)
        # Every block, the one used longest ago first; of those used together, what goes on before what it goes on from.
        self._by_use = OrderedDict[Block, None]()

    def match(self, tokens: Sequence[int]) -> Match:
        """Return the longest stored beginning of `tokens`; never all of them, as the last one is to be computed."""
        parts = list(self._stored(tokens[:-1]))
        self._use([block for block, _ in parts])
        count = sum(length for _, length in parts)
        if count == len(tokens) - 1:
            reason: MissReason | None = None
        else:
            reason = "diverged" if self._root.children else "nothing_stored"
        return Match(count, _joined(parts) if parts else [], reason)

    def store(self, tokens: Sequence[int], layers: Layers) -> None:
        """Keep what isn't kept yet of a row: `layers` hold its `tokens`, and may hold more behind them."""
        path = [block for block, length in self._stored(tokens) if length == BLOCK_TOKENS]
        parent, at = path[-1] if path else self._root, BLOCK_TOKENS * len(path)
        added = list[Block]()
        while at < len(tokens):
            chunk = tuple(tokens[at : at + BLOCK_TOKENS])
            if _nearest(parent, chunk)[1] == len(chunk):
                break
            block = Block(chunk, _cut(layers, at, at + len(chunk)), parent)
            self._add(parent, block)
            added.append(block)
            parent, at = block, at + len(chunk)
        mx.eval([block.layers for block in added])
        self._use([*path, *added])
        while self.nbytes > self._budget_bytes:
            self._drop(next(iter(self._by_use)))

    def clear(self) -> None:
        """Forget everything."""
        self._root.children.clear()
        self._by_use.clear()
        self.nbytes = 0

    def _stored(self, tokens: Sequence[int]) -> Iterator[tuple[Block, int]]:
        """Yield the blocks that `tokens` begin with, and how much of each; only the last one may be cut."""
        parent, at = self._root, 0
        while at < len(tokens):
            block, length = _nearest(parent, tuple(tokens[at : at + BLOCK_TOKENS]))
            if block is None or length == 0:
                return
            yield block, length
            if length < len(block.tokens):
                return
            parent, at = block, at + length

    def _use(self, path: list[Block]) -> None:
        for block in reversed(path):
            self._by_use[block] = None
            self._by_use.move_to_end(block)

    def _add(self, parent: Block, block: Block) -> None:
        # A last block that was shorter begins as this one does, and nothing goes on from it.
        for shorter in [
            child
            for child in parent.children
            if not child.children and child.tokens == block.tokens[: len(child.tokens)]
        ]:
            self._drop(shorter)
        insort(parent.children, block, key=attrgetter("tokens"))
        self.nbytes += block.nbytes

    def _drop(self, block: Block) -> None:
        assert block.parent is not None
        block.parent.children.remove(block)
        self._by_use.pop(block, None)
        self.nbytes -= block.nbytes


def _nearest(parent: Block, chunk: tuple[int, ...]) -> tuple[Block | None, int]:
    """Return the child that begins most like `chunk`, and for how many tokens: it stands beside its place in order."""
    at = bisect_left(parent.children, chunk, key=attrgetter("tokens"))
    near = parent.children[max(at - 1, 0) : at + 1]
    shared = [(_common(child.tokens, chunk), child) for child in near]
    if not shared:
        return None, 0
    length, child = max(shared, key=lambda one: one[0])
    return child, length


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return how many tokens two lists have in common from the beginning."""
    if one == other:
        return len(one)
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _cut(layers: Layers, begin: int, end: int) -> Layers:
    """Return a copy of some tokens' keys and values: a slice would hold on to all of the row's memory."""
    return [
        (mx.contiguous(keys[..., begin:end, :]), mx.contiguous(values[..., begin:end, :]))
        for keys, values in layers
    ]


def _joined(parts: list[tuple[Block, int]]) -> Layers:
    pieces = [[(k[..., :n, :], v[..., :n, :]) for k, v in block.layers] for block, n in parts]
    return [
        (
            mx.concatenate([keys for keys, _ in layer], axis=2),
            mx.concatenate([values for _, values in layer], axis=2),
        )
        for layer in zip(*pieces, strict=True)
    ]


def layers_of(caches: list[Any]) -> Layers:
    """Return what a row's mlx-lm caches hold; all of them must be plain."""
    return [(cache.keys, cache.values) for cache in caches]
