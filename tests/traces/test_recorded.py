"""Explanations of traces that a real server has recorded, and that it still records such ones."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from mlx_manager.observability.otlp_import import read_spans
from mlx_manager.traces import explain as rules
from mlx_manager.traces.explain import Finding, Rule, explain
from mlx_manager.traces.summarise import summarise
from mlx_manager.traces.summary import Trace
from tests.traces.record import RECORDED, SCENARIOS, record, staged

# By scenario: which rule it is about, what that says (times and ids may differ), and which span is the evidence.
EXPECTED: dict[str, tuple[Rule, str, str]] = {
    "model_load": (
        rules.model_was_loaded,
        r"The model was not in memory and had to be loaded first: TIME\.",
        "model.load",
    ),
    "queue": (
        rules.waited_in_queue,
        r"Waited TIME in the queue behind trace ID… and 1 other for a place in the batch\.",
        "queue",
    ),
    "prefix_miss": (
        rules.prompt_was_computed,
        r"Prefill took TIME: 294 of 557 prompt tokens computed, 263 from the prefix cache, where it leaves what is "
        r"stored at token 264, in system\.",
        "prefill",
    ),
    "prefix_hit": (
        rules.answer_was_decoded,
        r"Decoding 20 tokens took TIME at NUMBER tokens/s, alone in the batch\.",
        "decode",
    ),
    "prefill_of_others": (
        rules.decoding_paused,
        r"The longest pause between two tokens was TIME, where TIME is usual, while prompts of other requests were "
        r"prefilled\.",
        "decode",
    ),
    "slow_reader": (
        rules.reader_was_slow,
        r"The answer was complete TIME before its last byte was taken: the client, or the network to it, reads "
        r"slowly\.",
        "POST /v1/chat/completions",
    ),
    "cancelled": (
        rules.client_left,
        r"The client left after TIME, before the end\.",
        "POST /v1/chat/completions",
    ),
    "failed": (rules.work_failed, r"route failed with model_not_found after TIME\.", "route"),
    "resumed": (
        rules.request_was_resumed,
        r"The engine process was killed by signal 9 after NUMBER tokens; the request went on TIME later\.",
        "resume",
    ),
    "grammar": (
        rules.waited_for_grammar,
        r"Waited TIME for the grammar that the answer is held to, which took TIME to compile\.",
        "queue",
    ),
    "embeddings": (
        rules.inputs_were_computed,
        r"Computing the embeddings took TIME: 57 tokens in 1 step\.",
        "compute",
    ),
    "overtaken": (
        rules.waited_in_queue,
        r"Waited TIME in the queue behind trace ID… and 1 other for a place in the batch, while 1 request that came "
        r"later went first; its priority was low\.",
        "queue",
    ),
    "shared_prefix": (
        rules.waited_in_queue,
        r"Waited TIME in the queue, TIME of it while trace ID… read what both prompts begin with\.",
        "queue",
    ),
    "thoughts": (
        rules.model_thought,
        r"The model reasoned for TIME, NUMBER tokens, before it answered\.",
        "parse",
    ),
    "checked_key": (
        rules.request_was_admitted,
        r"Checking the key took TIME\.",
        "authenticate",
    ),
    "refused": (
        rules.work_failed,
        r"authenticate failed with invalid_api_key after TIME\.",
        "authenticate",
    ),
    "cloud": (rules.cloud_was_called, r"The call of openai’s gpt took TIME\.", "chat gpt"),
    "fallback": (
        rules.cloud_was_called,
        r"Fell back to openai’s gpt when chat nobody/none failed with model_not_found: that call took TIME\.",
        "chat gpt",
    ),
}
# Which rule speaks depends on how fast a machine is: the others hold anywhere.
TIMED = {
    *("prefill_of_others", "grammar", "embeddings", "prefix_miss", "prefix_hit", "slow_reader"),
    *("shared_prefix", "thoughts", "checked_key"),
}
# What other rules say of the same traces.
ALSO: dict[Rule, tuple[str, str, str]] = {
    rules.prompt_was_tokenized: (
        "model_load",
        r"Applying the chat template and encoding the prompt took TIME\.",
        "tokenize",
    ),
    rules.request_was_admitted: ("failed", r"Choosing the backend took TIME\.", "route"),
}


def read(exported: bytes) -> Trace:
    received = read_spans(exported, is_json=True)
    assert received.rejected == 0
    spans = tuple(sorted(received.spans, key=lambda span: span.start_ns))
    return Trace(summarise(spans[0].trace_id, spans), spans)


def recorded(name: str) -> Trace:
    return read((RECORDED / f"{name}.json").read_bytes())


def matches(sentence: str, said: str) -> bool:
    forms = {"TIME": r"[\d.]+ (µs|ms|s)", "NUMBER": r"[\d.,]+", "ID": "[0-9a-f]{8}"}
    for word, form in forms.items():
        said = said.replace(word, form)
    return re.fullmatch(said, sentence) is not None


def about(name: str, found: Trace) -> Finding:
    """What the rule of a scenario says, with its evidence checked."""
    rule, said, evidence = EXPECTED[name]
    (finding,) = rule(found)
    assert matches(finding.sentence, said), finding.sentence
    assert next(one.name for one in found.spans if one.span_id == finding.span_id) == evidence
    return finding


def test_every_scenario_is_recorded_and_expected() -> None:
    names = {scenario.__name__ for scenario in SCENARIOS}
    assert names == EXPECTED.keys() == {file.stem for file in RECORDED.glob("*.json")}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recorded_trace_is_explained(name: str) -> None:
    found = recorded(name)
    finding = about(name, found)
    assert finding in explain(found)
    assert 0 < finding.duration_ns <= found.summary.duration_ns


@pytest.mark.parametrize("name", EXPECTED)
def test_a_rule_speaks_only_where_it_has_something_to_say(name: str) -> None:
    """What happened to one request is not said of others to which it didn't happen."""
    rule = EXPECTED[name][0]
    speaking = {other for other in EXPECTED if list(rule(recorded(other)))}
    spoken = {
        "model_load": {"model_load", "embeddings", "slow_reader"},
        "prefill_of_others": {"prefill_of_others", "prefix_hit", "slow_reader", "thoughts"},
        "failed": {"failed", "fallback", "refused"},
        "refused": {"failed", "fallback", "refused"},
        "checked_key": {"checked_key", "failed", "fallback"},
        "cloud": {"cloud", "fallback"},
        "fallback": {"cloud", "fallback"},
    }
    usual = (rules.answer_was_decoded, rules.prompt_was_computed, rules.waited_in_queue)
    if rule not in usual:
        assert speaking == spoken.get(name, {name})
    elif rule is rules.waited_in_queue:
        waits = {"queue", "overtaken", "shared_prefix"}
        named = {
            other for other in speaking if "trace" in next(iter(rule(recorded(other)))).sentence
        }
        assert named == waits
    else:
        assert {"failed", "embeddings"} & speaking == set()


@pytest.mark.parametrize("rule", ALSO, ids=lambda rule: rule.__name__)
def test_rules_that_seldom_matter_speak_too(rule: Rule) -> None:
    name, said, evidence = ALSO[rule]
    found = recorded(name)
    (finding,) = rule(found)
    assert matches(finding.sentence, said), finding.sentence
    assert next(one.name for one in found.spans if one.span_id == finding.span_id) == evidence


def test_every_rule_speaks_of_a_recorded_trace() -> None:
    assert set(rules.RULES) == {*ALSO, *(rule for rule, _, _ in EXPECTED.values())}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    """The scenarios that don't hang on a machine's speed, recorded now."""
    scenarios = tuple(one for one in SCENARIOS if one.__name__ not in TIMED)
    with staged(tmp_path_factory.mktemp("stage")) as stage:
        yield dict(record(stage, scenarios))


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in TIMED])
def test_what_is_recorded_now_is_explained_in_the_same_words(
    fresh: dict[str, bytes], name: str
) -> None:
    about(name, read(fresh[name]))


def test_the_trace_that_was_waited_for_is_one_that_had_a_place(fresh: dict[str, bytes]) -> None:
    found = read(fresh["queue"])
    finding = about("queue", found)
    (queue,) = [one for one in found.spans if one.name == "queue"]
    assert finding.trace_id == queue.links[0].trace_id != found.summary.trace_id
