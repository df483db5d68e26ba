"""Compile grammars beside the engine, in a thread of its own, so that the rows that run go on meanwhile.

llguidance lets go of the interpreter's lock while it compiles and while it computes masks. While it reads a vocabulary
it doesn't: that is done once, when the model is loaded.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from mlx_manager.mlx_server.engine.grammar import GrammarRefused, Matcher, Vocabulary

# Compiled forms are up to 200 times as large as their texts: these are 100 MiB at most.
MOST_KEPT = 64
MOST_KEPT_CHARACTERS = 524_288
# llguidance goes down one rule within the other: 2,000 that refer to each other overflow the usual 8 MiB, and with them
# ends the process. Only what is used of it is taken.
STACK_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Compiled:
    """What became of a sequence's grammar: a matcher of its own, or why there can be none.

    Compiling took `compile_ns`; 0 when the grammar was known already.
    """

    sequence_id: int
    matcher: Matcher | None
    refusal: str | None
    compile_ns: int


class GrammarCompiler:
    """Makes matchers, one after another; `wake` is called from its thread when one is finished."""

    def __init__(self, vocabulary: Vocabulary, wake: Callable[[], None] = lambda: None) -> None:
        self._vocabulary = vocabulary
        self._wake = wake
        self._thread = _deep_thread()
        self._known = OrderedDict[str, Matcher]()
        self._asked: dict[int, Future[None]] = {}
        self._finished = deque[Compiled]()

    @property
    def has_finished(self) -> bool:
        """Whether `finished` has something to return."""
        return bool(self._finished)

    def prepare(self) -> None:
        """Begin to read the vocabulary. What is wrong with it is told to those who send grammars."""
        self._thread.submit(self._vocabulary.read)

    def compile(self, sequence_id: int, grammar: str) -> None:
        """Begin with a sequence's grammar, or let it wait for those that came before."""
        self._asked[sequence_id] = self._thread.submit(self._finish, sequence_id, grammar)

    def cancel(self, sequence_id: int) -> None:
        """Nobody waits for it any more: it isn't begun, or what becomes of it is thrown away."""
        if (asked := self._asked.pop(sequence_id, None)) is not None:
            asked.cancel()

    def finished(self) -> list[Compiled]:
        """Return what has been finished and was not cancelled."""
        found = list[Compiled]()
        while self._finished:
            compiled = self._finished.popleft()
            if self._asked.pop(compiled.sequence_id, None) is not None:
                found.append(compiled)
        return found

    def close(self) -> None:
        """Begin nothing more. The thread ends with what it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _finish(self, sequence_id: int, grammar: str) -> None:
        began_ns = time.monotonic_ns()
        matcher = refusal = None
        is_known = grammar in self._known
        try:
            matcher = self._matcher(grammar)
        except GrammarRefused as error:
            refusal = str(error)
        except BaseException as error:  # noqa: BLE001 - a panic in llguidance is no Exception
            refusal = f"it can't be compiled ({type(error).__name__})"
        compile_ns = 0 if is_known else time.monotonic_ns() - began_ns
        self._finished.append(Compiled(sequence_id, matcher, refusal, compile_ns))
        self._wake()

    def _matcher(self, grammar: str) -> Matcher:
        """Return a matcher at the grammar's beginning, for one sequence. Raises GrammarRefused."""
        known = self._known.get(grammar)
        if known is None:
            known = self._known[grammar] = self._vocabulary.matcher(grammar)
            self._forget_some()
        self._known.move_to_end(grammar)
        return known.copy()

    def _forget_some(self) -> None:
        """Forget those that were not asked for longest, until the others are few and short enough."""
        characters = sum(map(len, self._known))
        while len(self._known) > MOST_KEPT or characters > MOST_KEPT_CHARACTERS:
            grammar, _matcher = self._known.popitem(last=False)
            characters -= len(grammar)


def _deep_thread() -> ThreadPoolExecutor:
    """Return an executor whose one thread has room for deep grammars."""
    usual = threading.stack_size(STACK_BYTES)
    try:
        executor = ThreadPoolExecutor(1, "grammars")
        executor.submit(int)
    finally:
        threading.stack_size(usual)
    return executor
