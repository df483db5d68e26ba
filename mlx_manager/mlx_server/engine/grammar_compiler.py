"""Compile grammars beside the engine, in threads of their own, so that the rows that run go on meanwhile.

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
from threading import Barrier, Lock, Timer

from mlx_manager.mlx_server.engine.grammar import GrammarRefused, Matcher, Vocabulary

# One slow grammar leaves a thread to the others.
THREADS = 2
# Compiling can't be stopped, and takes 9 s for the slowest that was found; nobody waits longer than this for it.
LIMIT_S = 5.0
# Compiled forms are up to 200 times as large as their texts: these are 100 MiB at most.
MOST_KEPT = 64
MOST_KEPT_CHARACTERS = 524_288
# llguidance goes down one rule within the other: 2,000 that refer to each other overflow the usual 8 MiB, and with them
# ends the process. Only what is used of it is taken.
STACK_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Compiled:
    """What became of a sequence's grammar: a matcher of its own, or why there can be none.

    Compiling took `compile_ns`, as far as it was waited for; 0 when the grammar was known already.
    """

    sequence_id: int
    matcher: Matcher | None
    refusal: str | None
    compile_ns: int


class GrammarCompiler:
    """Makes matchers; `wake` is called from one of its threads when one is finished.

    A grammar that takes longer than `limit_s` is refused, and again when it is asked for again.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        wake: Callable[[], None] = lambda: None,
        *,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._vocabulary = vocabulary
        self._wake = wake
        self._limit_ns = round(limit_s * 1e9)
        self._too_slow = f"compiling it takes longer than {limit_s:g} s. Make it simpler."
        self._threads = _deep_threads()
        # Matchers at the beginning of grammars, or why there are none.
        self._known = OrderedDict[str, Matcher | str]()
        self._changing = Lock()
        self._asked: dict[int, Future[None]] = {}
        self._finished = deque[Compiled]()

    @property
    def has_finished(self) -> bool:
        """Whether `finished` has something to return."""
        return bool(self._finished)

    def prepare(self) -> None:
        """Begin to read the vocabulary. What is wrong with it is told to those who send grammars."""
        self._threads.submit(self._vocabulary.read)

    def compile(self, sequence_id: int, grammar: str) -> None:
        """Begin with a sequence's grammar, or let it wait for those that came before."""
        self._asked[sequence_id] = self._threads.submit(self._finish, sequence_id, grammar)

    def cancel(self, sequence_id: int) -> None:
        """Nobody waits for it any more: it isn't begun, or what becomes of it is thrown away."""
        if (asked := self._asked.pop(sequence_id, None)) is not None:
            asked.cancel()

    def finished(self) -> list[Compiled]:
        """Return what has been finished and was not cancelled, each sequence once."""
        found = list[Compiled]()
        while self._finished:
            compiled = self._finished.popleft()
            if self._asked.pop(compiled.sequence_id, None) is not None:
                found.append(compiled)
        return found

    def close(self) -> None:
        """Begin nothing more. The threads end with what they are doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _finish(self, sequence_id: int, grammar: str) -> None:
        with self._changing:
            known = self._known.get(grammar)
        compile_ns = 0
        if known is None:
            late = Compiled(sequence_id, None, self._too_slow, self._limit_ns)
            known, compile_ns = self._compiled(grammar, lambda: self._tell(late))
        self._keep(grammar, known)
        if isinstance(known, str):
            self._tell(Compiled(sequence_id, None, known, compile_ns))
        else:
            self._tell(Compiled(sequence_id, known.copy(), None, compile_ns))

    def _tell(self, compiled: Compiled) -> None:
        self._finished.append(compiled)
        self._wake()

    def _compiled(self, grammar: str, is_late: Callable[[], None]) -> tuple[Matcher | str, int]:
        """Return a matcher at the grammar's beginning or why there is none, and how long it took."""
        timer = Timer(self._limit_ns / 1e9, is_late)
        timer.daemon = True
        began_ns = time.monotonic_ns()
        found: Matcher | str
        try:
            # It may still be read, which is not the grammar's fault.
            self._vocabulary.read()
            began_ns = time.monotonic_ns()
            timer.start()
            found = self._vocabulary.matcher(grammar)
        except GrammarRefused as error:
            found = str(error)
        except BaseException as error:  # noqa: BLE001 - a panic in llguidance is no Exception
            found = f"it can't be compiled ({type(error).__name__})"
        timer.cancel()
        took_ns = time.monotonic_ns() - began_ns
        return (self._too_slow if took_ns > self._limit_ns else found), took_ns

    def _keep(self, grammar: str, known: Matcher | str) -> None:
        """Keep it as the latest, and forget those not asked for longest until the others are few and short enough."""
        with self._changing:
            self._known[grammar] = known
            self._known.move_to_end(grammar)
            characters = sum(map(len, self._known))
            while len(self._known) > MOST_KEPT or characters > MOST_KEPT_CHARACTERS:
                forgotten, _ = self._known.popitem(last=False)
                characters -= len(forgotten)


def _deep_threads() -> ThreadPoolExecutor:
    """Return an executor whose threads, all there already, have room for deep grammars."""
    usual = threading.stack_size(STACK_BYTES)
    try:
        executor = ThreadPoolExecutor(THREADS, "grammars")
        # A thread is started when none is idle.
        all_there = Barrier(THREADS)
        for _ in range(THREADS):
            executor.submit(all_there.wait)
    finally:
        threading.stack_size(usual)
    return executor
