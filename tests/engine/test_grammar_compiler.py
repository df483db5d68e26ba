"""Grammars are compiled beside the engine: what runs goes on, and who waits can leave."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load

from mlx_manager.mlx_server.engine.grammar import GrammarRefused, Matcher, Vocabulary
from mlx_manager.mlx_server.engine.grammar_compiler import (
    LIMIT_S,
    MOST_KEPT,
    Compiled,
    GrammarCompiler,
)
from mlx_manager.mlx_server.engine.messages import Constraint
from tests.engine.driving import MAX_STEPS, Driver
from tests.engine.models import WatchedModel

STARTER = Path(__file__).parents[2] / "mlx_manager" / "starter"
LETTERS = [f"{chr(97 + at % 26)}{at}" for at in range(4000)]
# Takes llguidance a third of a second.
SLOW = "start: %json " + json.dumps(
    {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in LETTERS},
        "required": LETTERS,
    }
)
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(STARTER)


@pytest.fixture(scope="module")
def starter() -> Any:
    """The shipped model in float32."""
    mx.set_default_device(mx.cpu)
    model = load(str(STARTER))[0]
    model.set_dtype(mx.float32)
    return model


class Compiling:
    """A compiler and what comes out of it."""

    def __init__(self, vocabulary: Vocabulary, limit_s: float = LIMIT_S) -> None:
        self._is_finished = threading.Event()
        self.compiler = GrammarCompiler(vocabulary, self._is_finished.set, limit_s=limit_s)
        self._asked = 0

    def ask(self, grammar: str) -> Compiled:
        """Have one compiled and wait for it."""
        self._asked += 1
        self.compiler.compile(self._asked, grammar)
        self.wait()
        assert self.compiler.has_finished
        (compiled,) = self.compiler.finished()
        assert compiled.sequence_id == self._asked
        return compiled

    def wait(self) -> None:
        """Wait until something is finished."""
        assert self._is_finished.wait(60)
        self._is_finished.clear()


@pytest.fixture
def compiling(vocabulary: Vocabulary) -> Iterator[Compiling]:
    compiling = Compiling(vocabulary)
    yield compiling
    compiling.compiler.close()


def test_a_grammar_is_compiled_once_and_each_sequence_has_a_place_of_its_own_in_it(
    compiling: Compiling, vocabulary: Vocabulary
) -> None:
    first, second = (compiling.ask('start: "abc" | "xyz"') for _ in range(2))
    assert first.compile_ns > 0
    assert second.compile_ns == 0
    assert first.matcher is not None
    assert second.matcher is not None
    first.matcher.take(vocabulary.token_bytes.index(b"x"))
    assert not first.matcher.allowed()[0][vocabulary.token_bytes.index(b"a")]
    assert second.matcher.allowed()[0][vocabulary.token_bytes.index(b"a")]


def test_of_too_many_grammars_the_one_that_was_not_asked_for_longest_is_forgotten(
    compiling: Compiling,
) -> None:
    for number in range(MOST_KEPT):
        compiling.ask(f'start: "{number}"')
    assert compiling.ask('start: "0"').compile_ns == 0
    compiling.ask('start: "one more"')
    assert compiling.ask('start: "0"').compile_ns == 0
    assert compiling.ask('start: "1"').compile_ns > 0


@pytest.mark.parametrize(
    "grammar",
    [
        "start: r0\n" + "\n".join(f'r{at}: "a" r{at + 1}' for at in range(9000)) + '\nr9000: "z"',
        "start: %json "
        + json.dumps(
            {
                "$ref": "#/$defs/d0",
                "$defs": {
                    f"d{at}": {
                        "type": "object",
                        "properties": {"a": {"$ref": f"#/$defs/d{at + 1}"}},
                    }
                    for at in range(3000)
                }
                | {"d3000": {"type": "null"}},
            }
        ),
    ],
    ids=["rules", "references"],
)
def test_rules_within_rules_do_not_overflow_the_stack(compiling: Compiling, grammar: str) -> None:
    compiled = compiling.ask(grammar)
    assert compiled.matcher is not None
    assert compiled.matcher.copy().allowed()[0].any()


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ("{", "EOF"),
        ("start: <|nothing|>", "nothing"),
        ("start: a\na: a", "complex"),
        ("start: /(/", "unclosed group"),
        ('start: x "a"', "unknown name"),
    ],
)
def test_a_refusal_says_why(compiling: Compiling, grammar: str, says: str) -> None:
    compiled = compiling.ask(grammar)
    assert compiled.matcher is None
    assert says in str(compiled.refusal)


class Patient(Vocabulary):
    """Does not compile the slow grammar before it may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.may_go = threading.Event()

    def matcher(self, grammar: str) -> Matcher:
        assert grammar != SLOW or self.may_go.wait(30)
        return super().matcher(grammar)


def test_a_slow_grammar_holds_up_no_other() -> None:
    vocabulary = Patient(STARTER)
    compiling = Compiling(vocabulary)
    compiling.compiler.compile(0, SLOW)
    assert compiling.ask('start: "yes"').matcher is not None
    vocabulary.may_go.set()
    compiling.compiler.close()


def test_a_grammar_whose_time_is_up_is_refused_then_and_at_once_when_it_comes_again() -> None:
    vocabulary = Patient(STARTER)
    compiling = Compiling(vocabulary, limit_s=0.05)
    late = compiling.ask(SLOW)
    assert late.matcher is None
    assert "longer than 0.05 s" in str(late.refusal)
    vocabulary.may_go.set()
    compiling.wait()
    assert compiling.compiler.finished() == [], "nobody waits for it any more"
    again = compiling.ask(SLOW)
    assert (again.refusal, again.compile_ns) == (late.refusal, 0)
    compiling.compiler.close()


def test_a_grammar_whose_tokens_are_slow_to_find_is_refused() -> None:
    # Each token of it takes 20 ms, within all limits of llguidance.
    ways = range(200)
    ambiguous = "\n".join(
        ["start: a", f'a: {" | ".join(f"b{at} a" for at in ways)} | ""']
        + [f"b{at}: /[a-z]{{1,{at + 1}}}/" for at in ways]
    )
    with pytest.raises(GrammarRefused, match="take too long"):
        Vocabulary(STARTER, probe_s=0.05).matcher(ambiguous)


def test_rows_go_on_while_a_grammar_is_compiled(starter: Any) -> None:
    vocabulary = Patient(STARTER)
    driver = Driver(starter, vocabulary=vocabulary)
    running = driver.submit(PROMPT, 100_000)
    driver.step_until(running, 1)
    waiting = driver.submit(PROMPT, 5, [1], constraint=Constraint(SLOW))
    assert driver.engine.vitals().waiting == 1
    driver.step_until(running, 20)
    assert driver.engine.is_compiling
    vocabulary.may_go.set()
    for _ in range(MAX_STEPS):
        if waiting in driver.admitted:
            break
        driver.step()
    assert waiting not in driver.waited, "there was room for it all the time"
    driver.cancel(waiting)
    driver.step()
    stamps = driver.ended[waiting].stamps
    assert stamps.grammar_compile_ns > 0
    assert stamps.received_ns < (stamps.grammar_ready_ns or 0) <= (stamps.admitted_ns or 0)


def test_who_leaves_while_its_grammar_is_compiled_is_gone_at_once(
    starter: Any, vocabulary: Vocabulary
) -> None:
    driver = Driver(starter, vocabulary=vocabulary)
    # Not in the cache: it has another name than the one before.
    slow, behind = (
        driver.submit(PROMPT, 5, [1], constraint=Constraint(grammar))
        for grammar in (SLOW.replace("a0", "zz"), 'start: "yes"')
    )
    driver.cancel(slow)
    driver.step()
    assert driver.ended[slow].reason == "cancelled"
    assert driver.engine.vitals().waiting == 1
    driver.finish()
    assert driver.ended[behind].reason != "refused"
    assert driver.engine.vitals().waiting == 0


def test_without_a_vocabulary_a_grammar_is_refused(model: WatchedModel) -> None:
    driver = Driver(model)
    sequence_id = driver.submit(PROMPT, 5, [1], constraint=Constraint('start: "yes"', param="x"))
    driver.finish()
    assert (driver.ended[sequence_id].reason, driver.ended[sequence_id].param) == ("refused", "x")
