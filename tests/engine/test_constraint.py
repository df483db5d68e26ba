"""Answers held to a grammar are a text of it, whatever the model would rather say and whoever runs beside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher
from mlx_lm import load
from msgspec.structs import replace

from mlx_manager.mlx_server.engine.grammar import Vocabulary
from mlx_manager.mlx_server.engine.messages import Constraint, SamplingParameters
from tests.engine.driving import GREEDY, Driver

STARTER = Path(__file__).parents[2] / "mlx_manager" / "starter"
MAX_TOKENS = 900
# Hot enough that without a grammar hardly two tokens in a row would be JSON.
WILD = SamplingParameters(temperature=1.5)
OBJECT = {"type": "object", "additionalProperties": False}
SCHEMAS: list[Any] = [
    {"type": "boolean"},
    {"type": "null"},
    {"type": "integer", "minimum": -3, "maximum": 40},
    {"type": "number", "minimum": 0, "maximum": 2, "multipleOf": 0.25},
    {"type": "string", "maxLength": 12},
    {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"enum": ["red", "green", 3, None]},
    {"const": {"fixed": [1, "two"]}},
    {"type": ["integer", "null"], "minimum": -999, "maximum": 999},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 4},
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 2},
    {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"enum": ["x"]}],
        "items": False,
        "minItems": 2,
    },
    OBJECT | {"properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["a"]},
    OBJECT
    | {
        "properties": {"name": {"type": "string", "maxLength": 8}, "is_new": {"type": "boolean"}},
        "required": ["name", "is_new"],
    },
    OBJECT | {"properties": {"some": {"type": "boolean"}}},
    OBJECT
    | {
        "properties": {
            "place": OBJECT
            | {
                "properties": {
                    "city": {"type": "string", "maxLength": 9},
                    "zip": {"type": "string", "pattern": "^\\d{4}$"},
                },
                "required": ["city", "zip"],
            }
        },
        "required": ["place"],
    },
    {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]},
    {
        "$defs": {"level": {"enum": ["low", "high"]}},
        **OBJECT,
        "properties": {"level": {"$ref": "#/$defs/level"}},
        "required": ["level"],
    },
    {"allOf": [{"type": "integer"}, {"minimum": 2, "maximum": 5}]},
    {"type": "object", "maxProperties": 0, "additionalProperties": False},
]  # fmt: skip


@pytest.fixture(scope="module")
def starter() -> tuple[Any, Any]:
    """The shipped model in float32, and its tokenizer."""
    mx.set_default_device(mx.cpu)
    model, tokenizer = load(str(STARTER))[:2]
    model.set_dtype(mx.float32)
    return model, tokenizer


def lark(text: str) -> str:
    return LLMatcher.grammar_from_lark(text)


def of_schema(schema: Any) -> Constraint:
    # Left to itself, a hot model may put white space between two tokens of JSON until it is cut off.
    guided = schema | {"x-guidance": {"whitespace_pattern": " ?"}}
    return Constraint(LLMatcher.grammar_from_json_schema(guided))


class Asked:
    """A driver over the starter, and what it says."""

    def __init__(self, starter: tuple[Any, Any], max_batch: int = 8) -> None:
        model, self.tokenizer = starter
        self.driver = Driver(model, max_batch=max_batch, vocabulary=Vocabulary(STARTER))
        self.end = [self.tokenizer.eos_token_id]

    def ask(
        self,
        constraint: Constraint | None,
        sampling: SamplingParameters = WILD,
        question: str = "Hello",
        max_tokens: int = MAX_TOKENS,
    ) -> int:
        prompt = self.tokenizer.encode(
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        return self.driver.submit(
            prompt, max_tokens, self.end, sampling, constraint=constraint
        )  # fmt: skip

    def text(self, sequence_id: int) -> str:
        assert self.driver.ended[sequence_id].reason == "stop"
        return str(self.tokenizer.decode(self.driver.tokens[sequence_id][:-1]))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_json_of_every_schema_is_valid(starter: tuple[Any, Any], schema: Any) -> None:
    asked = Asked(starter)
    # By chance a hot model writes an integer until it is cut off.
    wild = [replace(WILD, seed=seed) for seed in range(3)]
    ids = [asked.ask(of_schema(schema), sampling) for sampling in wild]
    asked.driver.finish()
    for sequence_id in ids:
        value = json.loads(asked.text(sequence_id))
        assert list(Draft202012Validator(schema).iter_errors(value)) == []


def test_rows_of_different_grammars_and_of_none_do_not_touch_each_other(
    starter: tuple[Any, Any],
) -> None:
    alone = Asked(starter)
    free = alone.ask(None, GREEDY, "What is MLX Manager?")
    alone.driver.finish()
    asked = Asked(starter)
    beside = asked.ask(None, GREEDY, "What is MLX Manager?")
    held = [asked.ask(of_schema(schema)) for schema in SCHEMAS[:6]]
    asked.driver.finish()
    assert asked.text(beside) == alone.text(free)
    for schema, sequence_id in zip(SCHEMAS[:6], held, strict=True):
        assert Draft202012Validator(schema).is_valid(json.loads(asked.text(sequence_id)))


@pytest.mark.parametrize("regex", ["(yes|no)", "[0-9]{3}-[a-f]{2}", "é{2}日本"])
def test_an_answer_matches_a_regular_expression(starter: tuple[Any, Any], regex: str) -> None:
    asked = Asked(starter)
    sequence_id = asked.ask(Constraint(LLMatcher.grammar_from_regex(regex)))
    asked.driver.finish()
    assert re.fullmatch(regex, asked.text(sequence_id))


def test_a_schema_that_only_refers_to_itself_is_refused(
    starter: tuple[Any, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    asked = Asked(starter)
    round_about = {"title": "secret", "$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    sequence_id = asked.ask(of_schema(round_about))
    asked.driver.finish()
    assert asked.driver.ended[sequence_id].reason == "refused"
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_a_trigger_leaves_what_comes_before_it_free(starter: tuple[Any, Any]) -> None:
    asked = Asked(starter)
    [end_of_thought] = asked.tokenizer.encode("</think>")
    constraint = Constraint(lark('start: "\\n\\n" ("yes" | "no")'), (end_of_thought,))
    # Left to itself the starter thinks before it answers, and says something else.
    sequence_id = asked.ask(constraint, GREEDY, "What is prefill?")
    asked.driver.finish()
    thought, _, answer = asked.text(sequence_id).partition("</think>")
    assert thought.startswith("<think>\n")
    assert answer in ("\n\nyes", "\n\nno")


def test_a_grammar_that_repeats_holds_behind_each_trigger(starter: tuple[Any, Any]) -> None:
    asked = Asked(starter)
    triggers = asked.tokenizer.encode("<think>") + asked.tokenizer.encode("</think>")
    constraint = Constraint(lark('start: "a" "b"'), tuple(triggers), repeats=True)
    sequence_id = asked.ask(constraint, GREEDY, "What is prefill?", 40)
    asked.driver.finish()
    text = asked.tokenizer.decode(asked.driver.tokens[sequence_id])
    assert "<think>ab" in text
    assert all(part.startswith("ab") for part in re.split("</?think>", text)[1:])


def test_a_seed_gives_the_same_text_of_a_grammar_whoever_runs_beside(
    starter: tuple[Any, Any],
) -> None:
    seeded = SamplingParameters(temperature=1.2, seed=5)
    integer = {"type": "integer", "minimum": -9999, "maximum": 9999}
    schema = {"type": "array", "items": integer, "minItems": 6, "maxItems": 6}
    alone = Asked(starter)
    first = alone.ask(of_schema(schema), seeded)
    alone.driver.finish()
    crowd = Asked(starter)
    others = [crowd.ask(of_schema(SCHEMAS[5])) for _ in range(3)]
    second = crowd.ask(of_schema(schema), seeded)
    crowd.driver.finish()
    assert crowd.text(second) == alone.text(first)
    assert len({crowd.text(other) for other in others}) >= 1


def test_what_is_no_grammar_is_refused_by_itself_only(starter: tuple[Any, Any]) -> None:
    asked = Asked(starter)
    bad = asked.ask(Constraint("{", param="structured_outputs.grammar"))
    good = asked.ask(of_schema({"type": "boolean"}))
    asked.driver.finish()
    ended = asked.driver.ended[bad]
    assert (ended.reason, ended.param) == ("refused", "structured_outputs.grammar")
    assert ended.detail
    assert asked.text(good) in ("true", "false")


def test_an_answer_whose_grammar_becomes_too_much_fails_and_nothing_of_it_is_printed(
    starter: tuple[Any, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    asked = Asked(starter)
    # The limits of llguidance are met far behind those tokens that are tried before.
    too_much = asked.ask(Constraint(lark("start: /[a-z]{200}geheim(x{1000000})/")))
    good = asked.ask(of_schema({"type": "boolean"}))
    asked.driver.finish()
    ended = asked.driver.ended[too_much]
    assert (ended.reason, ended.detail) == ("failed", "GrammarTooComplex")
    assert asked.text(good) in ("true", "false")
    said = capfd.readouterr()
    assert "grammar given up" in said.err
    assert "geheim" not in said.out + said.err


def test_what_is_no_grammar_is_not_printed(
    starter: tuple[Any, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    asked = Asked(starter)
    bad = asked.ask(Constraint(lark("start: <|geheim|>")))
    asked.driver.finish()
    ended = asked.driver.ended[bad]
    assert ended.reason == "refused"
    assert "geheim" in str(ended.detail), "who asks is told"
    said = capfd.readouterr()
    assert said.out + said.err == ""


@pytest.mark.parametrize("text", ["<|im_end|>", "a <tool_call> b", "</think>"])
def test_a_text_that_looks_like_a_mark_is_written_as_text(
    starter: tuple[Any, Any], text: str
) -> None:
    asked = Asked(starter)
    sequence_id = asked.ask(Constraint(lark(f"start: {json.dumps(text)}")))
    asked.driver.finish()
    assert asked.text(sequence_id) == text
    added = asked.tokenizer.added_tokens_decoder
    assert not set(asked.driver.tokens[sequence_id][:-1]) & set(added)


def test_an_answer_that_is_cut_short_is_the_beginning_of_a_text(starter: tuple[Any, Any]) -> None:
    asked = Asked(starter)
    schema = {"type": "array", "items": {"const": 7}, "minItems": 50}
    sequence_id = asked.ask(of_schema(schema), max_tokens=9)
    asked.driver.finish()
    assert asked.driver.ended[sequence_id].reason == "length"
    text = asked.tokenizer.decode(asked.driver.tokens[sequence_id])
    assert re.fullmatch(r"\[ ?(7 ?, ?)*7? ?", text)


@pytest.mark.parametrize(
    "steering",
    [
        {"repetition_penalty": 1.5},
        {"frequency_penalty": 2.0, "presence_penalty": 2.0},
        {"min_tokens": 40},
        {"logit_bias": tuple((token_id, -100.0) for token_id in range(1500))},
        {"top_k": 2, "top_p": 0.5, "min_p": 0.2, "xtc_probability": 1.0},
    ],
    ids=lambda steering: next(iter(steering)),
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_grammar_wins_over_whatever_else_steers(
    starter: tuple[Any, Any], steering: dict[str, Any], temperature: float
) -> None:
    asked = Asked(starter)
    sampling = SamplingParameters(temperature=temperature, **steering)
    sequence_id = asked.ask(Constraint(LLMatcher.grammar_from_regex("(ab){3}|c[0-9]{4}")), sampling)
    asked.driver.finish()
    assert re.fullmatch("(ab){3}|c[0-9]{4}", asked.text(sequence_id))
