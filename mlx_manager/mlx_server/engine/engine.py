"""The engine: sequences in, one report per step out. One step is schedule, run, settle, report.

It knows no socket and no clock but the one it is given, and no exception of one sequence ends it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

from mlx_manager.mlx_server.engine.batch_curve import BatchCurve
from mlx_manager.mlx_server.engine.blas_threads import BlasThreads
from mlx_manager.mlx_server.engine.grammar_compiler import Compiled, GrammarCompiler
from mlx_manager.mlx_server.engine.messages import (
    Cancel,
    Ended,
    EndReason,
    Room,
    Step,
    Submit,
    ToEngine,
    Vitals,
)
from mlx_manager.mlx_server.engine.read_prompt import ReadPrompt
from mlx_manager.mlx_server.engine.restoring import Restoring
from mlx_manager.mlx_server.engine.runner import GIVEN_UP, Runner, RunnerOutput, TokenOutput
from mlx_manager.mlx_server.engine.scheduler import Piece, Scheduler
from mlx_manager.mlx_server.engine.sequence import Sequence
from mlx_manager.mlx_server.engine.single_flight import Following
from mlx_manager.mlx_server.engine.step_clock import StepClock

CLOSE_S = 1.0
GRAMMAR_TOO_COMPLEX = "GrammarTooComplex"


class Engine:
    """Runs every sequence of one model."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        threads: BlasThreads,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._threads = threads
        self._clock_ns = clock_ns
        self._grammars = grammars
        self._compiling: dict[int, Sequence] = {}
        self._ended: list[Ended] = []
        # Sequences whose prompt another one is reading, by that one's id.
        self._siblings: dict[int, list[Sequence]] = {}
        self._following = Following()
        self._restoring = Restoring()
        self._step_clock = StepClock()
        self._batch_curve = BatchCurve()
        self._last_began_ns = 0
        self._newest_id = 0
        self._progress = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to report."""
        is_compiled = self._grammars is not None and self._grammars.has_finished
        has_turns = self._scheduler.has_work(self._clock_ns())
        return has_turns or bool(self._ended) or is_compiled or self._restoring.has_news

    @property
    def is_compiling(self) -> bool:
        """Whether sequences wait for their grammars."""
        return bool(self._compiling)

    @property
    def is_restoring(self) -> bool:
        """Whether sequences wait for files."""
        return bool(self._restoring)

    def handle(self, message: ToEngine) -> None:
        """Take one message from the inbox; its effect shows in the next step."""
        match message:
            case Submit():
                self._newest_id = message.newest_id
                self._take(Sequence.received(message, self._clock_ns()))
            case Cancel(sequence_id):
                self._cancel(sequence_id)
            case Room():
                self._scheduler.set_room(message.kv_budget_bytes)
                self._runner.set_room(message.prefix_cache_bytes, message.shared_bytes)

    def step(self) -> Step:
        """Advance everything by one step and say what happened."""
        began_ns = self._clock_ns()
        self._take_compiled(began_ns)
        following = list[int]()
        admitted, waited = self._begin(began_ns, following)
        self._last_began_ns = began_ns
        piece = self._scheduler.next_piece()
        output = self._run(piece)
        now_ns = self._clock_ns()
        self._measure(now_ns - began_ns, piece, output)
        for sequence_id, read in output.read.items():
            self._release(sequence_id, read)
        for sequence_id, proposed, right in output.proposed:
            self._scheduler.running[sequence_id].add_proposals(proposed, right)
        wanted = [one for one in output.tokens if self._is_wanted(one)]
        for token in output.tokens:
            self._settle(token, now_ns, output)
        for sequence_id in output.scored.done:
            self._end_without_tokens(self._scheduler.running[sequence_id])
        ended, self._ended = self._ended, []
        self._progress += len(output.tokens) + len(ended)
        pairs = [n for token in wanted for n in (token.sequence_id, token.token_id)]
        ids = [sequence.id for sequence in admitted]
        known = [one for one in admitted if one.stamps.cached_tokens]
        cached = [n for one in known for n in (one.id, one.stamps.cached_tokens)]
        scores = output.scored.logprobs
        return Step(now_ns, pairs, ids, ended, waited, output.logprobs, cached, scores, following)

    def _begin(self, now_ns: int, following: list[int]) -> tuple[list[Sequence], list[int]]:
        """Let into the batch who can go, and return them, and the ids of those that had to wait for room."""
        restored = self._restoring.restored(self._runner.take)
        for one in restored:
            one.sequence.stamps.restoring_ns += now_ns
        started = [one for one in restored if self._start(one.sequence)]
        begun = [
            sequence
            for sequence in [*self._released(), *self._scheduler.admit(now_ns)]
            if not self._follow(sequence, following)
            and not self._restore(sequence)
            and self._start(sequence)
        ]
        waited = [one.sequence.id for one in started if one.has_waited]
        waited += [one.id for one in begun if self._note_whether_it_waited(one)]
        return [*(one.sequence for one in started), *begun], waited

    @property
    def _waiting(self) -> int:
        """Sequences that have no place yet, or wait for a grammar or for somebody to read their prompt."""
        return self._scheduler.waiting + len(self._compiling) + len(self._unread_ids)

    @property
    def _unread_ids(self) -> list[int]:
        """Sequences that wait for somebody to read their prompt."""
        return [sibling.id for siblings in self._siblings.values() for sibling in siblings]

    def vitals(self) -> Vitals:
        """Say how the engine is, and how long the steps since the last such report took."""
        memory = self._runner.memory()
        files = memory.prefix_files
        return Vitals(
            waiting=self._waiting,
            running=len(self._scheduler.running),
            kv_bytes=memory.kv_bytes,
            active_bytes=memory.active_bytes,
            pooled_bytes=memory.pooled_bytes,
            prefix_cache_bytes=memory.prefix_cache_bytes,
            steps=self._step_clock.take(),
            sequence_ids=[*self._compiling, *self._unread_ids, *self._scheduler.sequence_ids],
            row_ids=self._runner.row_ids,
            newest_id=self._newest_id,
            prefix_files=files,
            progress=self._progress + (files.read if files is not None else 0),
            promised_kv_bytes=self._scheduler.promised_bytes,
            batch_curve=self._batch_curve.points(),
        )

    def close(self) -> None:
        """Compile nothing more, and have written what waits to be, in a second."""
        self._runner.close(CLOSE_S)
        if self._grammars is not None:
            self._grammars.close()

    def _receive(self, sequence: Sequence) -> None:
        """Queue a sequence; one that has a grammar first waits until that is compiled."""
        constraint = sequence.submit.constraint
        if constraint is None:
            self._scheduler.add(sequence)
        elif self._grammars is None:
            self._refuse(sequence, "this engine was started without a vocabulary")
        else:
            self._compiling[sequence.id] = sequence
            self._grammars.compile(sequence.id, constraint.grammar)

    def _take_compiled(self, now_ns: int) -> None:
        for compiled in self._grammars.finished() if self._grammars is not None else ():
            self._ready(self._compiling.pop(compiled.sequence_id), compiled, now_ns)

    def _ready(self, sequence: Sequence, compiled: Compiled, now_ns: int) -> None:
        sequence.stamps.grammar_ready_ns = now_ns
        sequence.stamps.grammar_compile_ns = compiled.compile_ns
        if compiled.matcher is None:
            self._refuse(sequence, compiled.refusal)
            return
        sequence.matcher = compiled.matcher
        for sibling in self._siblings.get(sequence.id, ()):
            sibling.matcher = compiled.matcher.copy()
        self._scheduler.add(sequence)

    def _take(self, sequence: Sequence) -> None:
        if siblings := list(sequence.siblings()):
            self._siblings[sequence.id] = siblings
        self._receive(sequence)

    def _release(self, sequence_id: int, read: ReadPrompt | None = None) -> None:
        """Queue those that have waited for the prompt of a sequence; what it hasn't read, they read themselves."""
        for sibling in self._siblings.pop(sequence_id, ()):
            if read is not None:
                sibling.share(read)
            if sibling.matcher is None:
                self._receive(sibling)
            else:
                self._scheduler.add(sibling)

    def _follow(self, sequence: Sequence, following: list[int]) -> bool:
        """Have a sequence wait for one that reads what both begin with, if there is one worth it, and note both."""
        if sequence.shared is not None or sequence.submit.scores_prompt:
            return False
        prefills = [one for one in self._scheduler.running.values() if self._is_read(one)]
        if not prefills:
            return False
        stored_tokens = self._runner.stored_tokens(sequence.submit.known_token_ids)
        leader = self._following.follow(
            sequence, prefills, stored_tokens, self._runner.usable_tokens
        )
        if leader is None:
            return False
        # Now: by the time that the other is read it has waited, and not for room.
        self._note_whether_it_waited(sequence)
        sequence.is_following = True
        sequence.stamps.following_ns -= self._clock_ns()
        following.extend((sequence.id, leader.id))
        return True

    def _is_read(self, sequence: Sequence) -> bool:
        """Whether the runner reads its prompt, and keeps it for others."""
        return (
            sequence.stamps.admitted_ns is not None
            and not sequence.is_decoding
            and not sequence.stands_still
            and not sequence.submit.scores_prompt
        )

    def _restore(self, sequence: Sequence) -> bool:
        """Have a sequence wait for files, if there are any of use to it: the others go on while those are read."""
        if sequence.shared is not None or not (fetches := self._runner.fetch(sequence.submit)):
            return False
        sequence.stamps.admitted_ns = now_ns = self._clock_ns()
        sequence.stamps.restoring_ns = -now_ns
        self._restoring.add(sequence, fetches, has_waited=self._note_whether_it_waited(sequence))
        return True

    def _released(self) -> list[Sequence]:
        """Return those that need no longer wait, with what they waited for in the prefix cache."""
        released = list[Sequence]()
        for sequence, leader, tokens in self._following.wanted():
            is_here = leader.id in self._scheduler.running
            if is_here and self._runner.read_tokens(leader.id) < tokens:
                continue
            if is_here and self._runner.stored_tokens(sequence.submit.known_token_ids) < tokens:
                self._store(leader)
            self._following.release(sequence.id)
            sequence.is_following = False
            sequence.stamps.following_ns += self._clock_ns()
            released.append(sequence)
        return released

    def _read(self, sequence: Sequence, chunk_tokens: int) -> int:
        """Record how far its prompt is read, and return by how many tokens: a snapshot may end a chunk."""
        if not sequence.submit.scores_prompt:
            read_tokens = self._runner.read_tokens(sequence.id)
            unread_tokens = len(sequence.submit.known_token_ids) - 1 - read_tokens
            chunk_tokens = sequence.unread_tokens - unread_tokens
        return sequence.read(chunk_tokens)

    def _store(self, sequence: Sequence) -> None:
        try:
            self._runner.store(sequence.id)
        except Exception as error:  # noqa: BLE001 - who waited for it reads the prompt itself
            traceback.print_exception(error)

    def _start(self, sequence: Sequence) -> bool:
        if sequence.stamps.admitted_ns is None:
            sequence.stamps.admitted_ns = self._clock_ns()
        read, sequence.shared = sequence.shared, None
        # Of a prompt that is neither answered nor scored there is nothing to have but that it is kept.
        is_scored = sequence.submit.scores_prompt and len(sequence.submit.token_ids) > 1
        if sequence.submit.max_tokens == 0 and not (is_scored or self._runner.has_room):
            self._end_without_tokens(sequence)
            return True
        try:
            match = self._runner.insert(sequence.submit, sequence.matcher, read, sequence.lane)
        except Exception as error:  # noqa: BLE001 - reported with the sequence; the engine goes on
            traceback.print_exception(error)
            self._fail(sequence, error)
            return False
        sequence.found(match.tokens)
        sequence.stamps.cache_miss_reason = match.reason
        sequence.stamps.shared_tokens = match.shared_tokens
        sequence.stamps.ahead_token_ids = list(match.ahead)
        return True

    def _note_whether_it_waited(self, sequence: Sequence) -> bool:
        """Say whether there was no room: what was there when the last step began could have been taken then.

        One that has not waited has no reason to have.
        """
        has_waited = sequence.ready_ns < self._last_began_ns
        if not has_waited:
            sequence.stamps.queue_reason = None
        return has_waited

    def _measure(self, step_ns: int, piece: Piece, output: RunnerOutput) -> None:
        """Write down what a step has read, and how long it took."""
        self._step_clock.add(step_ns)
        chunks = [
            self._read(self._scheduler.running[one], piece.tokens) for one in output.prefilled
        ]
        self._progress += sum(chunks)
        # Shorter chunks are padded to the longest one.
        computed_tokens = len(chunks) * max(chunks, default=0)
        self._scheduler.note(step_ns, computed_tokens, output.rows, piece.lane)
        self._batch_curve.note(step_ns, computed_tokens, output.rows)

    def _cancel(self, sequence_id: int) -> None:
        if (sequence := self._compiling.pop(sequence_id, None)) and self._grammars is not None:
            self._grammars.cancel(sequence_id)
            self._end(sequence, "cancelled")
            return
        sequence = self._scheduler.remove(sequence_id) or self._remove_sibling(sequence_id)
        if sequence is None:
            return
        self._following.forget(sequence_id)
        self._restoring.forget(sequence_id)
        if sequence.is_following:
            sequence.stamps.following_ns += self._clock_ns()
        if sequence.is_restoring:
            sequence.stamps.restoring_ns += self._clock_ns()
        self._end(sequence, "cancelled")
        try:
            self._runner.remove(sequence_id)
        except Exception as error:  # noqa: BLE001 - reported with the batch; the engine goes on
            self._lose_batch(error)

    def _remove_sibling(self, sequence_id: int) -> Sequence | None:
        for siblings in self._siblings.values():
            for sibling in siblings:
                if sibling.id == sequence_id:
                    siblings.remove(sibling)
                    return sibling
        return None

    def _run(self, piece: Piece) -> RunnerOutput:
        self._threads.suit(self._scheduler.prefill_tokens(piece))
        try:
            return self._runner.step(piece.tokens, piece.lane)
        except Exception as error:  # noqa: BLE001 - reported with the batch; the engine goes on
            self._lose_batch(error)
            return RunnerOutput([], [])

    def _lose_batch(self, error: Exception) -> None:
        """Give every row up: the batch's tensors may be half updated. The queue and the engine are not lost."""
        traceback.print_exception(error)
        for sequence in list(self._scheduler.running.values()):
            if not sequence.stands_still:
                self._scheduler.remove(sequence.id)
                self._end(sequence, "lost", type(error).__name__)
        self._scheduler.keep_places(self._clock_ns())
        self._runner.reset()

    def _settle(self, token: TokenOutput, now_ns: int, output: RunnerOutput) -> None:
        sequence = self._scheduler.running[token.sequence_id]
        if not self._is_wanted(token):
            self._end_without_tokens(sequence)
            return
        sequence.add_token(now_ns, output.rows, bool(output.prefilled))
        self._scheduler.charge(sequence, 1)
        if token.end is not None:
            self._scheduler.remove(sequence.id)
            if token.end == GIVEN_UP:
                self._end(sequence, "failed", GRAMMAR_TOO_COMPLEX)
            else:
                self._end(sequence, "stop" if token.end == "stop" else "length")

    def _is_wanted(self, token: TokenOutput) -> bool:
        """Whether it is part of an answer: what is drawn when a prompt was only to be read is not."""
        return self._scheduler.running[token.sequence_id].submit.max_tokens > 0

    def _end_without_tokens(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence.id)
        self._end(sequence, "length")

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        self._scheduler.remove(sequence.id)
        self._end(sequence, "failed", type(error).__name__)

    def _refuse(self, sequence: Sequence, why: str | None) -> None:
        constraint = sequence.submit.constraint
        param = None if constraint is None else constraint.param
        self._release(sequence.id)
        self._ended.append(Ended(sequence.id, "refused", sequence.stamps, why, param))

    def _end(self, sequence: Sequence, reason: EndReason, detail: str | None = None) -> None:
        self._release(sequence.id)
        self._following.forget(sequence.id)
        self._ended.append(Ended(sequence.id, reason, sequence.stamps, detail))
