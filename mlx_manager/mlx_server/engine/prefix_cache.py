"""What was read before, kept for prompts that begin like it: they are computed from where they differ.

A tree of blocks of up to 256 tokens (mlx-lm's own step): a shared beginning is stored once, and each way on from it is
a child. Attention's keys and values up to a token depend on nothing behind it, so any part of a block can be used.
Layers that can't be cut have snapshots, each behind one token of a block: a model with such layers goes on from the
last of them only. Bounded in bytes; what was used longest ago goes first, and of those used together never a block
before what goes on from it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Literal, cast

import mlx.core as mx
import msgspec

from mlx_manager.mlx_server.engine.block_file import Label
from mlx_manager.mlx_server.engine.messages import PrefixFiles
from mlx_manager.mlx_server.engine.prefix_block import Block, Kept, Shelf
from mlx_manager.mlx_server.engine.prefix_disk import Fetch, PrefixDisk, Stored
from mlx_manager.mlx_server.engine.row_state import Layers, RowState, State, States

BLOCK_TOKENS = 256
TOKEN_ID_BYTES = 8
# Of what is stored where a prompt leaves it, so many tokens are told.
MOST_AHEAD_TOKENS = 8
MissReason = Literal[
    "off",
    "unsupported_model",
    "prompt_logprobs",
    "nothing_stored",
    "no_snapshot",
    "diverged",
    "too_short",
    "no_room",
]


# A block, and how many of its tokens.
Part = tuple[Block, int]


@dataclass(frozen=True, slots=True)
class Match:
    """What needs not be computed of a prompt, and why it isn't more.

    `shared_tokens` are the first ones that it has in common with what is stored, of which those of `row` can be used;
    `ahead` are the tokens that are stored where it goes on differently.
    """

    row: RowState
    reason: MissReason | None
    shared_tokens: int = 0
    ahead: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens need not be computed."""
        return self.row.tokens


def no_match(reason: MissReason | None) -> Match:
    """Return the match of a prompt that is computed from its first token."""
    return Match(RowState(0, [], []), reason)


class PrefixCache:
    """What one model has read, up to `budget_bytes`. Belongs to the engine's thread.

    With `needs_states` a prompt goes on only from where there is a snapshot.
    """

    def __init__(
        self, budget_bytes: int, *, needs_states: bool = False, disk: PrefixDisk | None = None
    ) -> None:
        self._disk = disk
        self._budget_bytes = budget_bytes
        self._needs_states = needs_states
        self._root = _new_block((), None, [])
        self._memory = Shelf("nbytes")
        self._files = Shelf("file_bytes")
        if disk is not None:
            self._adopt(disk)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept in memory."""
        return self._memory.nbytes

    @property
    def files(self) -> PrefixFiles | None:
        """What there is in files; None when nothing is to be."""
        if self._disk is None:
            return None
        return msgspec.structs.replace(self._disk.counts, nbytes=self._files.nbytes)

    def match(self, tokens: Sequence[int], least_tokens: int = 1) -> Match:
        """Return the longest stored beginning of `tokens`; never all of them, as the last one is to be computed.

        One that is shorter than `least_tokens` is told of and not given out.
        """
        shared = list(self._stored(tokens[:-1]))
        parts, snapshot = self._usable(shared)
        while _length(parts) >= least_tokens and not self._bring_back(_kept_of(parts, snapshot)):
            shared = list(self._stored(tokens[:-1]))
            parts, snapshot = self._usable(shared)
        count, shared_count = _length(parts), _length(shared)
        if count == len(tokens) - 1:
            reason: MissReason | None = None if count >= least_tokens else "too_short"
        elif count < shared_count:
            reason = "no_snapshot"
        else:
            reason = "diverged" if self._root.children else "nothing_stored"
        row = self._row(parts, snapshot) if count >= least_tokens else RowState(0, [], [])
        return Match(row, reason, shared_count, self._ahead(shared, tokens[shared_count:]))

    def _row(self, parts: list[Part], snapshot: Kept | None) -> RowState:
        """Return what is in memory of these parts, and remember that it was used."""
        self._use([block for block, _ in parts])
        if snapshot is not None:
            self._memory.use(snapshot)
            self._files.use(snapshot)
        states = snapshot.arrays if snapshot else None
        row = RowState(_length(parts), _joined(parts) if parts else [], states or [])
        self._trim()
        return row

    def shared(self, tokens: Sequence[int]) -> int:
        """Return how many tokens `match` would find; changes nothing."""
        return _length(self._usable(list(self._stored(tokens[:-1])))[0])

    def fetch(self, tokens: Sequence[int]) -> list[Fetch]:
        """Have read what `match` would find in files only; until `take` says that it is there, `match` would wait."""
        if self._disk is None:
            return []
        parts, snapshot = self._usable(list(self._stored(tokens[:-1])))
        wanted = _kept_of(parts, snapshot)
        # The first ones last: what was used longest ago goes first, and without them the others are of no use.
        return [
            self._disk.fetch(kept.label)
            for kept in reversed(wanted)
            if kept.arrays is None and kept.label is not None
        ]

    def take(self, fetches: Sequence[Fetch]) -> bool:
        """Take in some of what was read for `fetch`; whether all of it is there."""
        assert self._disk is not None
        return self._disk.take(fetches)

    def store(self, tokens: Sequence[int], row: RowState) -> None:
        """Keep what isn't kept yet of a row, which has read `tokens`, or more: then it leaves no snapshot."""
        path = [block for block, length in self._stored(tokens) if length == BLOCK_TOKENS]
        parent, at = path[-1] if path else self._root, BLOCK_TOKENS * len(path)
        while at < len(tokens):
            chunk = tuple(tokens[at : at + BLOCK_TOKENS])
            near = _nearest(parent, chunk)
            if near is not None and near[1] == len(chunk):
                break
            path.append(self._add(parent, chunk, _cut(row.layers, at, at + len(chunk))))
            parent, at = path[-1], at + len(chunk)
        self._use(path)
        self._write([block.own for block in path])
        # Where files may take little, what has just been written may have gone again.
        is_kept = all(block.parent is not None for block in path)
        if is_kept and self._needs_states and row.tokens == len(tokens):
            self._add_snapshot(path, tuple(tokens), row.states)
        self._trim()

    def resize(self, budget_bytes: int) -> None:
        """Keep no more than `budget_bytes` from now on."""
        self._budget_bytes = budget_bytes
        self._trim()

    def settle(self) -> None:
        """Have written what is computed by now, and make the room that files of other models need. Once a step."""
        if self._disk is None:
            return
        self._disk.hand_over()
        excess_bytes, self._disk.excess_bytes = self._disk.excess_bytes, 0
        if excess_bytes:
            self._shrink(self._disk, max(self._files.nbytes - excess_bytes, 0))

    def _trim(self) -> None:
        while self._memory.nbytes > self._budget_bytes:
            kept = self._memory.oldest()
            self._memory.take(kept)
            kept.arrays = None
            if kept.label is None or self._disk is None or not self._disk.keep(kept.label):
                self._drop(kept)

    def clear(self) -> None:
        """Forget everything."""
        for child in list(self._root.children):
            self._remove(child)
        for kept in list(self._root.snapshots.values()):
            self._drop(kept)

    def close(self, timeout_s: float) -> None:
        """Write what waits to be written, as long as there is time."""
        if self._disk is not None:
            self._disk.close(timeout_s)

    def _stored(self, tokens: Sequence[int]) -> Iterator[Part]:
        """Yield the blocks that `tokens` begin with, and how much of each; only the last one may be cut."""
        parent, at = self._root, 0
        while at < len(tokens):
            near = _nearest(parent, tuple(tokens[at : at + BLOCK_TOKENS]))
            if near is None or near[1] == 0:
                return
            yield near
            block, length = near
            if length < len(block.tokens):
                return
            parent, at = block, at + length

    def _usable(self, parts: list[Part]) -> tuple[list[Part], Kept | None]:
        """Return the parts up to the last snapshot in them, and that; all of them where none is needed."""
        if not self._needs_states:
            return parts, None
        for index in range(len(parts) - 1, -1, -1):
            block, length = parts[index]
            if snapshot := _last_snapshot(block, length):
                assert snapshot.behind is not None
                return [*parts[:index], (block, len(snapshot.behind))], snapshot
        return [], None

    def _ahead(self, shared: list[Part], rest: Sequence[int]) -> tuple[int, ...]:
        """Return what is stored behind the `shared` part of a prompt, which goes on with `rest` instead."""
        block, length = shared[-1] if shared else (self._root, 0)
        if length < len(block.tokens):
            return block.tokens[length : length + MOST_AHEAD_TOKENS]
        near = _nearest(block, tuple(rest[:BLOCK_TOKENS]))
        return near[0].tokens[:MOST_AHEAD_TOKENS] if near else ()

    def _use(self, path: list[Block]) -> None:
        for block in reversed(path):
            self._memory.use(block.own)
            self._files.use(block.own)

    def _add(self, parent: Block, tokens: tuple[int, ...], layers: Layers) -> Block:
        block = _new_block(tokens, parent, layers)
        self._memory.put(block.own)
        # A last block that was shorter begins as this one does, and nothing goes on from it.
        for shorter in [
            child
            for child in parent.children
            if not child.children and child.tokens == tokens[: len(child.tokens)]
        ]:
            self._remove(shorter)
        insort(parent.children, block, key=attrgetter("tokens"))
        return block

    def _add_snapshot(self, path: list[Block], tokens: tuple[int, ...], states: States) -> None:
        full = (len(tokens) - 1) // BLOCK_TOKENS
        block, behind = path[full - 1] if full else self._root, tokens[full * BLOCK_TOKENS :]
        if behind in block.snapshots:
            self._memory.use(block.snapshots[behind])
            self._files.use(block.snapshots[behind])
            return
        copies = [tuple(None if a is None else mx.contiguous(a) for a in state) for state in states]
        block.snapshots[behind] = _kept(block, behind, copies)
        self._memory.put(block.snapshots[behind])
        self._write([block.snapshots[behind]])

    def _drop(self, kept: Kept) -> None:
        if kept.behind is None:
            self._remove(kept.block)
        else:
            self._take(kept)
            del kept.block.snapshots[kept.behind]

    def _remove(self, block: Block) -> None:
        """Take a block out of the tree, with all that hangs on it, and have it freed.

        Block and arrays know each other: only a collection of old objects, which seldom comes, would find them.
        """
        for child in list(block.children):
            self._remove(child)
        assert block.parent is not None
        block.parent.children.remove(block)
        for kept in (block.own, *block.snapshots.values()):
            self._take(kept)
            kept.arrays = None
        block.snapshots.clear()
        del block.own
        block.parent = None

    def _take(self, kept: Kept) -> None:
        self._memory.take(kept)
        self._remove_file(kept)

    def _remove_file(self, kept: Kept) -> None:
        if self._disk is not None and kept.label is not None:
            self._files.take(kept)
            self._disk.remove(kept.label)
            kept.label = None

    def _write(self, written: list[Kept]) -> None:
        """Have files written of what has none, parents first: without its parent's a file is of no use."""
        disk = self._disk
        if disk is None:
            return
        for kept in written:
            if kept.label is not None or kept.arrays is None:
                continue
            label = _label(disk.root, kept)
            file_bytes = None if label is None else disk.write(label, kept.arrays)
            if file_bytes is None:
                break
            kept.label, kept.file_bytes = label, file_bytes
            self._files.put(kept)
        self._shrink(disk, disk.max_bytes)

    def _shrink(self, disk: PrefixDisk, most_bytes: int) -> None:
        """Have no more bytes in files than that, and tell the disk what there is."""
        while self._files.nbytes > most_bytes:
            kept = self._files.oldest()
            self._remove_file(kept)
            if kept.arrays is None:
                self._drop(kept)
        disk.own_bytes = self._files.nbytes
        disk.oldest = self._files.oldest().label if self._files.nbytes else None

    def _bring_back(self, wanted: list[Kept]) -> bool:
        """Read what isn't in memory; False, and the first that can't be read is gone with all behind it, if any is."""
        for kept in wanted:
            if kept.arrays is not None:
                continue
            assert self._disk is not None
            assert kept.label is not None
            kept.arrays = self._disk.read(kept.label)
            if kept.arrays is None:
                self._drop(kept)
                return False
            kept.nbytes = _nbytes(kept.arrays, kept.block)
            self._memory.put(kept)
        return True

    def _adopt(self, disk: PrefixDisk) -> None:
        """Take over the files that are there; those whose parents are missing go."""
        behind = defaultdict[str, list[Stored]](list)
        for stored in sorted(disk.scan(), key=lambda one: one.used_s):
            behind[stored.label.parent].append(stored)
        blocks, found = [("", self._root)], list[tuple[float, Kept]]()
        while blocks:
            key, parent = blocks.pop()
            for stored in behind.pop(key, []):
                kept = self._adopted(parent, stored)
                found.append((stored.used_s, kept))
                if kept.behind is None:
                    blocks.append((stored.label.key, kept.block))
        for orphan in (one for rest in behind.values() for one in rest):
            disk.remove(orphan.label)
        for _, kept in sorted(found, key=itemgetter(0)):
            self._files.put(kept)
        self._shrink(disk, disk.max_bytes)

    def _adopted(self, parent: Block, stored: Stored) -> Kept:
        tokens, label = stored.label.tokens, stored.label
        if label.kind == "snapshot":
            kept = Kept(parent, tokens, None, 0, label, stored.nbytes)
            parent.snapshots[tokens] = kept
            return kept
        block = Block(tokens, parent)
        block.own = Kept(block, None, None, 0, label, stored.nbytes)
        insort(parent.children, block, key=attrgetter("tokens"))
        return block.own


def _new_block(tokens: tuple[int, ...], parent: Block | None, layers: Layers) -> Block:
    block = Block(tokens, parent)
    block.own = _kept(block, None, list[State](layers))
    return block


def _kept(block: Block, behind: tuple[int, ...] | None, arrays: list[State]) -> Kept:
    # Not to wait: the next step of the batch is on its way before them.
    mx.async_eval(arrays)
    return Kept(block, behind, arrays, _nbytes(arrays, block))


def _nbytes(arrays: list[State], block: Block) -> int:
    held = [array for state in arrays for array in state if array is not None]
    # Without attention it is only the tokens that take room, which must be bounded, too.
    return sum(array.nbytes for array in held) or TOKEN_ID_BYTES * len(block.tokens)


def _label(root: str, kept: Kept) -> Label | None:
    """Return the label of something; None when the block that it is behind has no file."""
    parent = kept.block if kept.behind is not None else kept.block.parent
    assert parent is not None
    if parent.parent is not None and parent.own.label is None:
        return None
    key = parent.own.label.key if parent.own.label else ""
    if kept.behind is not None:
        return Label("snapshot", root, key, kept.behind)
    return Label("block", root, key, kept.block.tokens)


def _last_snapshot(block: Block, length: int) -> Kept | None:
    """Return the snapshot that is behind most of the first `length` tokens of `block`."""
    snapshots = block.parent.snapshots if block.parent is not None else {}
    lengths = sorted({len(behind) for behind in snapshots}, reverse=True)
    found = (snapshots.get(block.tokens[:one]) for one in lengths if one <= length)
    return next((snapshot for snapshot in found if snapshot), None)


def _kept_of(parts: list[Part], snapshot: Kept | None) -> list[Kept]:
    return [*(block.own for block, _ in parts), *filter(None, [snapshot])]


def _length(parts: list[Part]) -> int:
    return sum(length for _, length in parts)


def _nearest(parent: Block, chunk: tuple[int, ...]) -> Part | None:
    """Return the child that begins most like `chunk`, and for how many tokens: it stands beside its place in order."""
    at = bisect_left(parent.children, chunk, key=attrgetter("tokens"))
    near = parent.children[max(at - 1, 0) : at + 1]
    shared = [(child, _common(child.tokens, chunk)) for child in near]
    return max(shared, key=lambda one: one[1]) if shared else None


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


def _joined(parts: list[Part]) -> Layers:
    pieces = [
        [
            (keys[..., :n, :], values[..., :n, :])
            for keys, values in cast("Layers", block.own.arrays)
        ]
        for block, n in parts
    ]
    return [
        (
            mx.concatenate([keys for keys, _ in layer], axis=2),
            mx.concatenate([values for _, values in layer], axis=2),
        )
        for layer in zip(*pieces, strict=True)
    ]
