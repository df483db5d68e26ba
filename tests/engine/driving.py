"""Drive an engine by hand, step by step."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from mlx_manager.mlx_server.engine.blas_threads import BlasThreads
from mlx_manager.mlx_server.engine.engine import Engine
from mlx_manager.mlx_server.engine.grammar import Vocabulary
from mlx_manager.mlx_server.engine.grammar_compiler import GrammarCompiler
from mlx_manager.mlx_server.engine.kv_cost import measure_kv_cost
from mlx_manager.mlx_server.engine.messages import (
    Cancel,
    Constraint,
    Ended,
    Logprobs,
    Priority,
    SamplingParameters,
    Sibling,
    Step,
    Submit,
    ThoughtBudget,
)
from mlx_manager.mlx_server.engine.prefix_disk import PrefixDisk
from mlx_manager.mlx_server.engine.row_state import kinds_of
from mlx_manager.mlx_server.engine.runner import Runner
from mlx_manager.mlx_server.engine.scheduler import RETURN_NS, Limits, Scheduler

GREEDY = SamplingParameters()
MAX_STEPS = 5000
# Pieces of prompts are as long as the limits say, however slow the machine is.
ENDLESS_NS = 10**15


class Driver:
    """An engine over a model, and everything it has reported."""

    def __init__(
        self,
        model: Any,
        *,
        max_batch: int = 8,
        chunk: int = 64,
        idle_chunk: int = 256,
        vocabulary: Vocabulary | None = None,
        prefix_cache_bytes: int | None = None,
        token_gap_ns: int = ENDLESS_NS,
        kv_budget_bytes: int | None = None,
        kv_shared_bytes: int | None = None,
        prefix_disk: PrefixDisk | None = None,
        lookup_tokens: int = 0,
    ) -> None:
        if not kinds_of(model).are_batchable:
            max_batch = 1
        cost = None if kv_budget_bytes is None else measure_kv_cost(model)
        limits = Limits(max_batch, chunk, idle_chunk, token_gap_ns, cost, kv_budget_bytes)
        scheduler = Scheduler(limits)
        self.paused_ns = 0
        runner = Runner(
            model, max_batch, prefix_cache_bytes, kv_shared_bytes, prefix_disk, lookup_tokens
        )
        self._compiled = threading.Event()
        grammars = None if vocabulary is None else GrammarCompiler(vocabulary, self._compiled.set)
        self.engine = Engine(runner, scheduler, BlasThreads(0), self._clock_ns, grammars)
        self.tokens: defaultdict[int, list[int]] = defaultdict(list)
        self.logprobs: defaultdict[int, list[Logprobs]] = defaultdict(list)
        self.prompt_logprobs: defaultdict[int, list[Logprobs]] = defaultdict(list)
        self.ended: dict[int, Ended] = {}
        self.admitted: list[int] = []
        self.waited: list[int] = []
        self.following: list[tuple[int, int]] = []
        self._ids = itertools.count(1)

    def submit(
        self,
        prompt: Sequence[int],
        max_tokens: int = 12,
        end_token_ids: Sequence[int] = (),
        sampling: SamplingParameters = GREEDY,
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
        priority: Priority = "normal",
        key_id: str | None = None,
        made: Sequence[int] = (),
        scores_prompt: bool = False,
        borders: Sequence[int] = (),
        thought_budget: ThoughtBudget | None = None,
    ) -> int:
        """Hand a prompt in, with what another engine has made of its answer, and return the sequence's id."""
        sequence_id = next(self._ids)
        submit = Submit(
            sequence_id,
            list(prompt),
            max_tokens,
            list(end_token_ids),
            sampling,
            top_logprobs,
            constraint,
            priority,
            key_id,
            scores_prompt=scores_prompt,
            borders=list(borders),
            thought_budget=thought_budget,
        )
        self.engine.handle(msgspec.structs.replace(submit, made_token_ids=list(made)))
        return sequence_id

    def submit_choices(
        self, prompt: Sequence[int], seeds: Sequence[int | None], max_tokens: int = 12, **how: Any
    ) -> list[int]:
        """Hand a prompt in that is to be answered once for each seed, and return the sequences' ids."""
        first, *others = ids = [next(self._ids) for _ in seeds]
        sampling = SamplingParameters(**({"temperature": 1.0, "seed": seeds[0]} | how))
        siblings = [Sibling(*one) for one in zip(others, seeds[1:], strict=True)]
        submit = Submit(first, list(prompt), max_tokens, [], sampling, siblings=siblings)
        self.engine.handle(submit)
        return ids

    def cancel(self, sequence_id: int) -> None:
        self.engine.handle(Cancel(sequence_id))

    def step(self) -> Step:
        """Make one step and note what it says; where all wait for files, first wait for one."""
        while self.engine.is_restoring and not self.engine.has_work:
            time.sleep(0.0005)
        step = self.engine.step()
        for sequence_id, token_id in pairs(step):
            assert sequence_id not in self.ended, "a token after the end"
            self.tokens[sequence_id].append(token_id)
        for logprobs in step.logprobs:
            self.logprobs[logprobs.sequence_id].append(logprobs)
        for logprobs in step.prompt_logprobs:
            self.prompt_logprobs[logprobs.sequence_id].append(logprobs)
        self.admitted.extend(step.admitted)
        self.following.extend(zip(step.following[::2], step.following[1::2], strict=True))
        self.waited.extend(step.waited)
        for ended in step.ended:
            assert ended.sequence_id not in self.ended, "ended twice"
            self.ended[ended.sequence_id] = ended
            if ended.reason == "lost":
                # None comes back by itself: nobody is to wait for it.
                self.paused_ns += RETURN_NS
        return step

    def step_until(self, sequence_id: int, tokens: int) -> None:
        """Step until a sequence has that many tokens."""
        for _ in range(MAX_STEPS):
            if len(self.tokens[sequence_id]) >= tokens:
                return
            self.step()
        raise AssertionError("the engine makes no progress")

    def _clock_ns(self) -> int:
        """The time; a test that wants a step to take longer adds to `paused_ns` before it."""
        return time.monotonic_ns() + self.paused_ns

    def wait_for_grammar(self) -> None:
        """Wait, if nothing runs, until a grammar is compiled."""
        if not self.engine.has_work:
            assert self._compiled.wait(60), "no grammar was compiled"
        self._compiled.clear()

    def finish(self) -> None:
        """Step until there is nothing left to do."""
        for _ in range(MAX_STEPS):
            if self.engine.is_compiling:
                self.wait_for_grammar()
            elif not self.engine.has_work and not self.engine.is_restoring:
                return
            self.step()
        raise AssertionError("the engine makes no progress")


def pairs(step: Step) -> list[tuple[int, int]]:
    """Return a step's (sequence id, token id) pairs."""
    numbers = iter(step.tokens)
    return list(zip(numbers, numbers, strict=True))


def answer_alone(model: Any, prompt: Sequence[int], **how: Any) -> list[int]:
    """Return the answer to a prompt that has an engine for itself."""
    driver = Driver(model)
    sequence_id = driver.submit(prompt, **how)
    driver.finish()
    return driver.tokens[sequence_id]
