"""Decide which sequences wait, prefill or decode, and how much prompt one step may compute.

Pure: no tensors, no clock, no locks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

from mlx_manager.mlx_server.engine.line import AGEING_NS, Line, Shares
from mlx_manager.mlx_server.engine.messages import KvCost, QueueReason
from mlx_manager.mlx_server.engine.pace import Pace
from mlx_manager.mlx_server.engine.sequence import Lane, Sequence

MAX_PREFILLS = 8
# Of those, so many that take more than a step: the other places are for prompts that are read at once.
MAX_LONG_PREFILLS = 4
MIN_CHUNK_TOKENS = 64
# Prompts of up to so many tokens share a lane: what those of others are padded to costs little.
MOST_SHARED_TOKENS = 1024
TOKEN_GAP_NS = 100_000_000
# A first token is a step behind its prompt, or two. So long others' prompts stand still for it, and no longer.
MOST_HELD_STEPS = 2
# So long nobody new takes the places of a lost batch, whose sequences come back through the API process.
RETURN_NS = 100_000_000
# Of those that can't run now, so many may be passed over in one step.
MOST_PASSED_OVER = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows that run together, prompt tokens per step while others decode or wait, and while alone: at most.

    Fewer where a step would otherwise keep the next token of a running row for longer than `token_gap_ns`. All rows
    together, and the prompts that siblings wait to go on from, may keep `kv_budget_bytes`, of which `kv_cost` says how
    many one needs; None: not counted.
    """

    max_batch: int
    prefill_chunk_tokens: int
    idle_prefill_chunk_tokens: int
    token_gap_ns: int = TOKEN_GAP_NS
    kv_cost: KvCost | None = None
    kv_budget_bytes: int | None = None

    @property
    def chunk_tokens(self) -> int:
        """Prompt tokens per step in any case: at most."""
        return max(self.prefill_chunk_tokens, self.idle_prefill_chunk_tokens)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step computes of prompts: up to so many tokens of each that is in a lane; of none when that is 0."""

    tokens: int
    lane: Lane


class Scheduler:
    """Who runs: by priority, age and key, into a batch that is bounded in rows and in bytes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._shares = Shares()
        self._line = Line(self._shares)
        self._pace = Pace(limits.token_gap_ns)
        self._closed_by: QueueReason = "places"
        self._held_steps = 0
        self._was_quick = False
        # When each lane that is read has had its last turn, counted in turns.
        self._turn_of: dict[Lane, int] = {}
        self._kept_until_ns = 0
        self.running: dict[int, Sequence] = {}

    def has_work(self, now_ns: int) -> bool:
        """Whether a step would do anything."""
        is_running = not all(sequence.is_restoring for sequence in self.running.values())
        return is_running or next(self._turns(now_ns), None) is not None

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._line)

    @property
    def sequence_ids(self) -> list[int]:
        """All that run and all that wait."""
        return [*self.running, *self._line.sequence_ids]

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        self._shares.join(sequence.submit.key_id)
        self._line.add(sequence)

    def remove(self, sequence_id: int) -> Sequence | None:
        """Take a sequence out, wherever it is; None when it is not here any more."""
        sequence = self.running.pop(sequence_id, None) or self._line.remove(sequence_id)
        if sequence is not None:
            self._shares.leave(sequence.submit.key_id)
        return sequence

    def admit(self, now_ns: int) -> list[Sequence]:
        """Move into the batch what there is room for, and return it."""
        admitted, passed_over = list[Sequence](), 0
        for sequence in self._turns(now_ns):
            obstacle = self._obstacle(sequence)
            if obstacle is None:
                admitted.append(sequence)
                self._take(sequence)
                continue
            sequence.stamps.queue_reason = self._closed_by = obstacle
            passed_over += 1
            # What is smaller may go first, but not for ever, and not before one on trial.
            has_aged = now_ns - sequence.stamps.received_ns > AGEING_NS
            is_next = has_aged or sequence.submit.is_on_trial
            if self._is_closed() or is_next or passed_over == MOST_PASSED_OVER:
                break
        return admitted

    def keep_places(self, now_ns: int) -> None:
        """Let those of a lost batch, who come back at once, have their places again."""
        self._kept_until_ns = now_ns + RETURN_NS

    def set_room(self, kv_budget_bytes: int) -> None:
        """Admit by so many bytes from now on."""
        self._limits = replace(self._limits, kv_budget_bytes=kv_budget_bytes)

    def charge(self, sequence: Sequence, tokens: int) -> None:
        """Count tokens that were computed for a sequence to its key."""
        self._shares.charge(sequence.submit.key_id, tokens)

    def next_piece(self) -> Piece:
        """Return what the next step reads of prompts.

        mlx-lm computes one chunk of every prompt in a lane, padded to the longest chunk: the budget is shared out so
        that eight short prompts cost a step's budget and not eight of them. What would be left of a prompt for a pass
        of its own comes along, where that is less than half a piece: a pass over few tokens costs nearly as much as one
        over many.
        """
        reading = self._reading()
        if self._holds_for_first_token(reading):
            return Piece(0, None)
        lane = self._next_lane(reading)
        budget = self._budget_tokens(lane)
        unread = [one.unread_tokens for one in reading if one.lane == lane]
        prompts = max(len(unread), 1)
        share = max(min(MIN_CHUNK_TOKENS, budget), budget // prompts)
        most = min(share + share // 2, max(share, self._limit_tokens() // prompts))
        return Piece(max(share, *(tokens for tokens in unread if tokens <= most), 0), lane)

    def prefill_tokens(self, piece: Piece) -> int:
        """Return how many prompt tokens a step computes at most that reads such a piece."""
        reading = (one for one in self._reading() if one.lane == piece.lane)
        return sum(min(piece.tokens, sequence.unread_tokens) for sequence in reading)

    def note(self, step_ns: int, prompt_tokens: int, rows: int, lane: Lane = None) -> None:
        """Learn how long a step took that computed so many prompt tokens of a lane and one token of each of `rows`."""
        self._pace.note(step_ns, prompt_tokens, rows, lane)

    def _turns(self, now_ns: int) -> Iterator[Sequence]:
        """Yield those that wait in the order of their turns, while places are kept only those that came back."""
        turns = self._line.turns(now_ns)
        return takewhile(_has_come_back, turns) if now_ns < self._kept_until_ns else turns

    def _take(self, sequence: Sequence) -> None:
        sequence.lane = self._lane_for(sequence)
        self._line.remove(sequence.id)
        self.running[sequence.id] = sequence
        if sequence.stamps.queue_reason is None:
            sequence.stamps.queue_reason = self._closed_by
        # What another has read is charged once.
        self.charge(sequence, sequence.unread_tokens + 1)
        self._line.overtake(sequence)

    def _is_closed(self) -> bool:
        """Whether nobody could run now, however small."""
        is_full = len(self.running) >= self._limits.max_batch
        is_trial = any(one.submit.is_on_trial for one in self._beginning())
        return is_full or is_trial or len(self._reading()) >= MAX_PREFILLS

    def _obstacle(self, sequence: Sequence) -> QueueReason | None:
        """Return what keeps a sequence from running now; None: nothing does."""
        reading, budget = self._reading(), self._budget_tokens()
        if len(self.running) >= self._limits.max_batch:
            return "places"
        beginning = self._beginning()
        if beginning and any(one.submit.is_on_trial for one in (*beginning, sequence)):
            return "prompts"
        longs = sum(one.unread_tokens > budget for one in reading)
        most_longs = min(max(budget // MIN_CHUNK_TOKENS, 2), MAX_LONG_PREFILLS)
        is_long = sequence.unread_tokens > budget
        if len(reading) >= MAX_PREFILLS or (is_long and longs >= most_longs):
            return "prompts"
        return None if self._fits(sequence) else "memory"

    @property
    def promised_bytes(self) -> int:
        """What the batch may grow to, all rows of which are as long as the longest one; 0 where nobody can tell."""
        return self._batch_bytes([*self.running.values()])

    def _batch_bytes(self, rows: list[Sequence]) -> int:
        if self._limits.kv_cost is None or not rows:
            return 0
        longest = max(row.most_tokens for row in rows)
        reading = [
            len(row.submit.known_token_ids)
            for row in rows
            if not row.is_decoding and row.shared is None
        ]
        return self._limits.kv_cost.batch_bytes(
            len(rows), longest, reading, self._limits.chunk_tokens
        )

    def _fits(self, sequence: Sequence) -> bool:
        """Whether the batch, all rows of which are as long as the longest one, stays within the budget."""
        cost, budget_bytes = self._limits.kv_cost, self._limits.kv_budget_bytes
        if cost is None or budget_bytes is None:
            return True
        sequence.stamps.kv_bytes = cost.row_bytes(sequence.most_tokens)
        rows = [*self.running.values(), sequence]
        free_bytes = budget_bytes - self._batch_bytes(rows)
        # Asked last: it looks at all that wait.
        fits = free_bytes >= 0 and free_bytes >= self._kept_bytes(cost, sequence)
        return len(rows) == 1 or fits

    def _kept_bytes(self, cost: KvCost, sequence: Sequence) -> int:
        """Return what is kept beside the rows of prompts from which others than `sequence` wait to go on."""
        waiting = (one.shared for one in self._line if one is not sequence)
        kept = {id(read): read.tokens for read in waiting if read is not None}
        return sum(map(cost.row_bytes, kept.values()))

    def _budget_tokens(self, lane: Lane = None) -> int:
        """Return how many prompt tokens the next step may compute, of all prompts in a lane together."""
        if self._is_alone():
            return min(self._limit_tokens(), self._pace.idle_tokens(lane))
        decoding = sum(sequence.is_decoding for sequence in self.running.values())
        return min(self._limit_tokens(), self._pace.tokens(decoding, lane))

    def _limit_tokens(self) -> int:
        """Return how many that may be at most, however fast they are."""
        limits = self._limits
        return limits.idle_prefill_chunk_tokens if self._is_alone() else limits.prefill_chunk_tokens

    def _is_alone(self) -> bool:
        """Whether one sequence has the engine for itself."""
        active = sum(not sequence.stands_still for sequence in self.running.values())
        return active == 1 and not len(self._line)

    def _holds_for_first_token(self, reading: list[Sequence]) -> bool:
        """Whether the prompts that are read stand still, for those that have been and have no token yet."""
        is_due = any(
            one.unread_tokens == 0 and not one.is_decoding for one in self.running.values()
        )
        holds = is_due and bool(reading) and self._held_steps < MOST_HELD_STEPS
        self._held_steps = self._held_steps + 1 if holds else 0
        return holds

    def _lane_for(self, sequence: Sequence) -> Lane:
        """Return the shared lane for a short prompt, and else one that no other prompt is padded in."""
        is_short = len(sequence.submit.known_token_ids) <= MOST_SHARED_TOKENS
        return None if is_short and not sequence.submit.scores_prompt else sequence.id

    def _next_lane(self, reading: list[Sequence]) -> Lane:
        """Return the lane that the next step reads: one in which a piece ends a prompt, then one in which none does.

        Of several it is the one whose last turn is longest ago.
        """
        unread: dict[Lane, int] = {}
        for one in reading:
            unread[one.lane] = min(one.unread_tokens, unread.get(one.lane, one.unread_tokens))
        self._pace.forget_all_but(unread)
        quick = [lane for lane in unread if unread[lane] <= self._budget_tokens(lane)]
        slow = [lane for lane in unread if lane not in quick]
        self._was_quick = bool(quick) and not (slow and self._was_quick)
        lanes = quick if self._was_quick else slow
        self._turn_of = {lane: self._turn_of.get(lane, 0) for lane in unread}
        if not lanes:
            return None
        lane = min(lanes, key=self._turn_of.__getitem__)
        self._turn_of[lane] = 1 + max(self._turn_of.values())
        return lane

    def _beginning(self) -> list[Sequence]:
        """Return those that run and have no token yet."""
        return [sequence for sequence in self.running.values() if not sequence.is_decoding]

    def _reading(self) -> list[Sequence]:
        return [
            sequence
            for sequence in self.running.values()
            if sequence.unread_tokens > 0 and not sequence.stands_still
        ]


def _has_come_back(sequence: Sequence) -> bool:
    return sequence.submit.attempts > 0
