"""Rows that decode together, for models whose caches are all plain keys and values.

It takes the place of mlx-lm's own batch inside its `BatchGenerator`, which reads prompts as before. mlx-lm's copies the
keys and values of all rows whenever one ends, and twice when one joins, and computes the first step of who joins apart;
here a row's coming and going costs what the row itself is long, and its first step is one of everybody's.
See docs/decisions/0053.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
from mlx_lm.generate import PromptProcessingBatch

from mlx_manager.mlx_server.engine.lanes import LanedGenerator
from mlx_manager.mlx_server.engine.lookup import Lookup
from mlx_manager.mlx_server.engine.row_state import PlainLayers
from mlx_manager.mlx_server.engine.sampling import (
    LogitsProcessor,
    Sampler,
    SeededSampler,
    draw_together,
    is_free,
)
from mlx_manager.mlx_server.engine.slotted_cache import Layout, SlottedCache, slots_of

# Slots that are free for so many steps, and as many as the others, are given up: each costs its part of every step.
IDLE_STEPS = 8


@dataclass(slots=True, eq=False)
class Row:
    """One sequence. `tokens` are those that its keys and values are of, with the one that is being computed.

    With a `lookup` it proposes tokens while it is alone.
    """

    uid: int
    tokens: list[int]
    sampler: Sampler
    processors: Sequence[LogitsProcessor]
    matcher: Any
    max_tokens: int
    lookup: Lookup | None = None
    next_token: int = 0
    slot: int = -1
    made: int = 0
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One token of a row. Of one that ends it there is also the reason, and what it leaves in the caches."""

    uid: int
    token: int
    finish_reason: str | None
    prompt_cache: list[Any] | None
    all_tokens: list[int] | None
    _logits: mx.array
    _at: int

    @property
    def logprobs(self) -> mx.array:
        """The logits that the token was drawn from, `[vocabulary]`; mlx-lm's answers have them normalised."""
        return self._logits[self._at]


@dataclass(frozen=True, slots=True)
class Joining:
    """Rows that have read their prompts but for the last token, each with its place in the batch that read them.

    `read` has each layer's keys and values of that batch, and the column that all of its rows end before.
    """

    rows: list[tuple[int, Row]]
    read: list[tuple[mx.array | None, mx.array | None, int]]

    @property
    def uids(self) -> list[int]:
        """Their names."""
        return [row.uid for _, row in self.rows]

    def generate(self, tokens: list[list[int]]) -> Joining:
        """Take the last token of each prompt."""
        for (_, row), [last] in zip(self.rows, tokens, strict=True):
            row.next_token = last
        return self


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that is being computed: one token of each of `rows`, or of one row behind each of its `proposals`, too."""

    rows: list[Row]
    tokens: mx.array
    logits: mx.array
    proposals: list[int]


@dataclass(frozen=True, slots=True)
class Proposed:
    """How many tokens a step proposed for a row, and how many of them were right."""

    uid: int
    proposed: int
    right: int


@dataclass(frozen=True, slots=True)
class Landed:
    """A step of one row that is over before the next one begins: the tokens that it made, and how many it proposed.

    All but the last token were proposed.
    """

    row: Row
    tokens: list[int]
    logits: mx.array
    proposed: int


class PromptBatch(PromptProcessingBatch):
    """mlx-lm's prompts, which join a `DecodeBatch` when they are read. Nothing of theirs is copied on the way."""

    def split(self, indices: list[int]) -> Joining:
        """Take rows out."""
        rows = [
            Row(
                uid=self.uids[index],
                tokens=self.tokens[index],
                sampler=self.samplers[index],
                processors=self.logits_processors[index],
                matcher=self.stop_sequences[index].matcher(),
                max_tokens=self.max_tokens[index],
            )
            for index in indices
        ]
        read = [(cache.keys, cache.values, cache._idx) for cache in self.prompt_cache]
        self.filter([index for index in range(len(self.uids)) if index not in indices])
        return Joining(list(zip(indices, rows, strict=True)), read)


@dataclass(slots=True, eq=False)
class DecodeBatch:
    """Decodes a token of every row in each step, one step ahead of what it tells.

    With `keeps_rows` what ended rows leave in the caches is told, too. A row that is alone proposes up to
    `lookup_tokens` of its next tokens where it repeats itself, and one step computes what follows each of them.
    """

    model: Any
    layers: PlainLayers
    keeps_rows: bool = True
    lookup_tokens: int = 0
    proposed: list[Proposed] = field(default_factory=list)
    _layout: Layout = field(default_factory=Layout)
    _caches: list[SlottedCache] = field(default_factory=list)
    # By slot; None where it is free.
    _slots: list[Row | None] = field(default_factory=list)
    _joined: list[Row] = field(default_factory=list)
    # The token that the next step begins with in each slot.
    _inputs: mx.array | None = None
    _flight: Flight | None = None
    _landed: Landed | None = None
    # What the row that is alone should say next, when it was looked up.
    _expected: int | None = None
    _idle_steps: int = 0

    def __post_init__(self) -> None:
        quantisation = self.layers.quantisation
        self._caches = [slots_of(self._layout, quantisation) for _ in range(self.layers.count)]

    def __len__(self) -> int:
        return sum(row is not None for row in self._slots)

    @property
    def uids(self) -> list[int]:
        """The names of all rows; `filter` and `extract_cache` know a row by its place among them."""
        return [row.uid for row in self._rows()]

    @property
    def tokens(self) -> list[list[int]]:
        """What each row has in the caches."""
        return [row.tokens for row in self._rows()]

    @property
    def prompt_cache(self) -> list[SlottedCache]:
        """The buffers of all layers."""
        return self._caches

    def extract_cache(self, index: int) -> list[Any]:
        """Return what a row has in the caches, in mlx-lm's caches for one row."""
        return self._left_by(self._rows()[index])

    def filter(self, keep: list[int]) -> None:
        """Drop all rows but those at some places."""
        for index, row in enumerate(self._rows()):
            if index not in keep:
                self._drop(row)

    def extend(self, joining: Joining) -> None:
        """Let rows join with the next step."""
        if self._flight is not None and self._flight.proposals:
            self._land(self._flight)
        lengths = [len(row.tokens) for _, row in joining.rows]
        if not self._layout.has_room(lengths):
            self._move(lengths)
        for place, row in joining.rows:
            row.slot = self._layout.take(len(row.tokens))
            self._slots[row.slot :] = [row, *self._slots[row.slot + 1 :]]
            self._joined.append(row)
            if self.lookup_tokens and is_free(row.sampler) and not row.processors:
                row.lookup = Lookup(self.lookup_tokens)
            if row.tokens:
                self._put(row, joining, place)

    def next(self) -> list[Answer]:
        """Begin the next step, and return what the one before has made."""
        if not self:
            return []
        if self._flight is not None and self._must_know(self._flight):
            self._land(self._flight)
        told, done = self._take_landed(), self._flight
        if not self:
            return told
        self._begin_step()
        if done is None:
            return told
        tokens = cast("list[int]", done.tokens.tolist())
        return [
            self._answer(row, token, done.logits, at)
            for at, (row, token) in enumerate(zip(done.rows, tokens, strict=True))
            if not row.is_over
        ]

    def _rows(self) -> list[Row]:
        return [row for row in self._slots if row is not None]

    def _put(self, row: Row, joining: Joining, place: int) -> None:
        for cache, (keys, values, end) in zip(self._caches, joining.read, strict=True):
            assert keys is not None
            assert values is not None
            one, columns = slice(place, place + 1), slice(end - len(row.tokens), end)
            cache.put(row.slot, keys[one, :, columns], values[one, :, columns])

    def _must_know(self, flight: Flight) -> bool:
        """Whether the next step can't begin before the tokens of the one under way are known."""
        if flight.proposals:
            return True
        self._expected = None
        if len(self._slots) == 1 and len(flight.rows) == 1 and not self._joined:
            [row] = flight.rows
            if row.lookup is not None and (expected := row.lookup.propose(row.tokens)):
                self._expected = expected[0]
        return self._expected is not None

    def _land(self, flight: Flight) -> None:
        """Wait for a step of one row, and take back what it has computed of wrong proposals."""
        [row], proposals = flight.rows, flight.proposals
        drawn = cast("list[int]", flight.tokens.tolist())
        right = 0
        while right < len(proposals) and drawn[right] == proposals[right]:
            right += 1
        wrong = len(proposals) - right
        self._layout.take_back(wrong)
        if isinstance(row.sampler, SeededSampler):
            row.sampler.take_back(wrong)
        self._learn(row, proposals, right, drawn[0])
        row.tokens += drawn[:right]
        row.next_token = drawn[right]
        self._joined.append(row)
        self._flight = None
        self._landed = Landed(row, drawn[: right + 1], flight.logits, len(proposals))

    def _learn(self, row: Row, proposals: list[int], right: int, first: int) -> None:
        assert row.lookup is not None
        if proposals:
            row.lookup.learn(len(proposals), right, len(row.tokens) + right)
        elif first != self._expected:
            row.lookup.learn(1, 0, len(row.tokens))

    def _take_landed(self) -> list[Answer]:
        """Return the tokens of a step that is over, up to the one that ends its row."""
        landed, self._landed = self._landed, None
        if landed is None or landed.row.is_over:
            return []
        row, answers = landed.row, list[Answer]()
        before = len(row.tokens) - len(landed.tokens) + 1
        for at, token in enumerate(landed.tokens):
            if reason := self._reason_to_end(row, token):
                del row.tokens[before + at :]
                answers.append(self._last_answer(row, token, reason, landed.logits, at))
                break
            answers.append(Answer(row.uid, token, None, None, None, landed.logits, at))
        if landed.proposed:
            right = min(len(answers), len(landed.tokens) - 1)
            self.proposed.append(Proposed(row.uid, landed.proposed, right))
        return answers

    def _proposals(self) -> list[int]:
        """Return what the next step computes besides, for a row that is alone and whose last token is known."""
        if len(self._slots) != 1 or len(self._joined) != 1:
            return []
        [row] = self._joined
        # With its last token the row ends, whatever would be behind that.
        room = row.max_tokens - row.made - 1
        if row.lookup is None or row.is_over or room < 1:
            return []
        return row.lookup.propose(row.tokens, row.next_token)[:room]

    def _begin_step(self) -> None:
        self._give_up_slots()
        proposals = self._proposals()
        self._layout.width = 1 + len(proposals)
        if not self._layout.has_room(columns=self._layout.width):
            self._move([])
        if proposals:
            self._begin_with_proposals(proposals)
            return
        inputs, rows = self._take_inputs(), self._rows()
        logits = self.model(inputs[:, None], cache=self._caches)[:, -1, :]
        self._layout.advance()
        slots = None
        if len(rows) < len(self._slots):
            slots = mx.array([row.slot for row in rows])
            logits = logits[slots]
        logits = _processed(rows, logits)
        # No draw needs their sum to be one, and finding it out takes a CPU up to a quarter of a small model's step.
        tokens = draw_together([row.sampler for row in rows], logits)
        self._inputs = tokens
        if slots is not None:
            self._inputs = mx.zeros(len(self._slots), tokens.dtype)
            self._inputs[slots] = tokens
        mx.async_eval(self._inputs, tokens, logits)
        self._flight = Flight(rows, tokens, logits, [])

    def _begin_with_proposals(self, proposals: list[int]) -> None:
        """Compute what follows the last token of the row that is alone, and what would follow each guess."""
        [row], self._joined = self._joined, []
        row.tokens.append(row.next_token)
        inputs = mx.array([[row.next_token, *proposals]], mx.uint32)
        logits = self.model(inputs, cache=self._caches)[0]
        self._layout.advance()
        tokens = draw_together([row.sampler] * self._layout.width, logits)
        mx.async_eval(tokens, logits)
        self._inputs = None
        self._flight = Flight([row], tokens, logits, proposals)

    def _take_inputs(self) -> mx.array:
        """Return what each slot's step begins with: what was drawn for it last, or the last token of a prompt."""
        inputs = self._fitting_inputs()
        joined, self._joined = [row for row in self._joined if not row.is_over], []
        if joined:
            firsts = mx.array([row.next_token for row in joined], inputs.dtype)
            inputs[mx.array([row.slot for row in joined])] = firsts
        for row in joined:
            row.tokens.append(row.next_token)
        return inputs

    def _fitting_inputs(self) -> mx.array:
        """Return the inputs of as many slots as there are now."""
        slots = len(self._slots)
        if self._inputs is None:
            return mx.zeros(slots, mx.uint32)
        missing = slots - self._inputs.shape[0]
        return mx.pad(self._inputs, (0, missing)) if missing > 0 else self._inputs[:slots]

    def _answer(self, row: Row, token: int, logits: mx.array, at: int) -> Answer:
        row.tokens.append(token)
        if reason := self._reason_to_end(row, token):
            return self._last_answer(row, token, reason, logits, at)
        return Answer(row.uid, token, None, None, None, logits, at)

    def _reason_to_end(self, row: Row, token: int) -> str | None:
        """Count a token that a row has made, and say why it is the last one, if it is."""
        row.made += 1
        if row.matcher.advance(token):
            return "stop"
        return "length" if row.made >= row.max_tokens else None

    def _last_answer(self, row: Row, token: int, reason: str, logits: mx.array, at: int) -> Answer:
        left = self._left_by(row) if self.keeps_rows else None
        self._drop(row)
        return Answer(row.uid, token, reason, left, row.tokens, logits, at)

    def _left_by(self, row: Row) -> list[Any]:
        return [cache.extract(row.slot, len(row.tokens)) for cache in self._caches]

    def _drop(self, row: Row) -> None:
        row.is_over = True
        self._slots[row.slot] = None
        self._layout.leave(row.slot)
        del self._slots[self._layout.slots :]
        if not self._slots:
            self._clear()

    def _give_up_slots(self) -> None:
        free = self._layout.free
        self._idle_steps = self._idle_steps + 1 if free and not self._joined else 0
        if self._idle_steps > IDLE_STEPS and free * 2 >= len(self._slots):
            self._move([])

    def shrink(self) -> None:
        """Go on in smaller buffers, if rows that have ended leave room for any."""
        if self._rows() and not self._joined and self._layout.could_shrink:
            self._move([])

    def _move(self, lengths: list[int]) -> None:
        """Go on in new buffers, with room for rows that have so many tokens, too."""
        inputs, move = self._fitting_inputs(), self._layout.move(lengths)
        for cache in self._caches:
            cache.move(move)
        self._slots = list(self._rows())
        for slot, row in enumerate(self._slots):
            if row is not None:
                row.slot = slot
        self._inputs = inputs[mx.array(move.kept)] if move.kept else None
        self._idle_steps = 0

    def _clear(self) -> None:
        """Nobody is here: give the buffers back."""
        for cache in self._caches:
            cache.clear()
        self._layout.move([])
        self._inputs = self._flight = self._landed = None
        self._joined.clear()


class SlottedGenerator(LanedGenerator):
    """mlx-lm's `BatchGenerator` with a `DecodeBatch` for rows that have read their prompts.

    A step reads first and decodes then: who has read its prompt is among those that decode, at once. `note_read` is
    told in between how far everybody has come.
    """

    def __init__(
        self,
        model: Any,
        layers: PlainLayers,
        *,
        keeps_rows: bool,
        lookup_tokens: int = 0,
        note_read: Callable[[list[Any]], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self._note_read = note_read
        self._prompt_batch = self._empty_batch()
        self._generation_batch = DecodeBatch(model, layers, keeps_rows, lookup_tokens)

    def shrink(self) -> None:
        """Have rows that have ended take no memory any more; otherwise that comes when many have."""
        self._generation_batch.shrink()

    def take_proposed(self) -> list[Proposed]:
        """Return how proposals went since the last call."""
        proposed, self._generation_batch.proposed = self._generation_batch.proposed, []
        return cast("list[Proposed]", proposed)

    def _next(self) -> tuple[list[Any], list[Any]]:
        self._clear_at_rest()
        joined = [response for _ in self._each_lane() for response in self._join_read()]
        read = self._read_pieces()
        if read and self._note_read is not None:
            self._note_read(read)
        joined += self._join_read()
        self._counters.generation_steps += len(self._generation_batch) > 0
        return [*read, *joined], self._generation_batch.next()

    def _empty_batch(self) -> PromptBatch:
        empty: PromptBatch = PromptBatch.empty(self.model, self.sampler, self._most_step_tokens)
        return empty


def _processed(rows: list[Row], logits: mx.array) -> mx.array:
    """Return the logits as rows want to have them. No row gets a context: none of ours looks at it."""
    if not any(row.processors for row in rows):
        return logits
    nothing, processed = mx.array([], mx.uint32), list[mx.array]()
    for at, row in enumerate(rows):
        own = logits[at : at + 1]
        for processor in row.processors:
            own = processor(nothing, own)
        processed.append(own)
    return mx.concatenate(processed)
