"""What the grammar of a call lets through, the family's parser reads as that call, with valid arguments."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

import mlx_manager
from mlx_manager.chat.events import Delta, TextDelta, ToolCallDelta, ToolCallStarted
from mlx_manager.chat.request import (
    AnswerFormat,
    ChatRequest,
    Conversation,
    Message,
    Origin,
    Tool,
    ToolChoice,
)
from mlx_manager.errors import UnsupportedParameter
from mlx_manager.mlx_server.engine.grammar import Vocabulary
from mlx_manager.mlx_server.engine.messages import Constraint
from mlx_manager.mlx_server.families.family import FAMILIES, Family
from mlx_manager.mlx_server.families.forms import Parameters
from mlx_manager.mlx_server.families.harmony import MARKS
from mlx_manager.mlx_server.generation.grammar_rules import MARK
from mlx_manager.mlx_server.generation.grammars import constraint_for
from mlx_manager.mlx_server.generation.local import parser_for
from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text
from mlx_manager.mlx_server.pool.catalog import ModelFiles

STARTER = Path(mlx_manager.__file__).parent / "starter"
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
WALKS = 6
MOST_TOKENS, LONG = 600, 60
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$", "maxLength": 2},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "exact": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
        "place": {"$ref": "#/$defs/place"},
    },
    "required": ["city", "code", "days"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"north": {"type": "number"}, "sea": {"type": ["boolean", "null"]}},
            "required": ["north"],
            "additionalProperties": False,
        }
    },
}
PROPERTIES: dict[str, Any] = {**SCHEMA["properties"]}  # type: ignore[dict-item]
STRICT = (
    Tool("get_weather", "The weather", SCHEMA, is_strict=True),
    Tool("wait", None, {"type": "object", "properties": {}, "additionalProperties": False}, True),
)
LOOSE = (Tool("get_weather", "The weather", SCHEMA), Tool("look", None, {}))
SAYABLE = [one for one in FAMILIES if one.form is not None or one.in_messages]
LAST_MESSAGE = ("<|end|>", "<|end|><|start|>assistant<|channel|>final<|message|>")
CALL_BEGINS = "<|end|><|start|>assistant<|channel|>commentary to=functions."
Make = Callable[[Family], ModelText]


def marks_of(family: Family) -> list[str]:
    """What a model of the family has tokens for."""
    if family.in_messages:
        return list(MARKS)
    form = family.form
    if form is None:
        return []
    found = [form.before, form.begin, form.tail, form.last, form.head]
    if isinstance(form.arguments, Parameters) and family.name == "glm":
        found += [form.arguments.open, form.arguments.close]
    marks = [mark for text in found for mark in MARK.findall(text)]
    marks += [quote] if (quote := getattr(form.arguments, "quote", "")) else []
    marks += [*family.reasoning] if family.reasoning and family.name != "gemma4" else []
    plain = ("<function={name}>", "</function>", "</invoke>")
    return [mark for mark in dict.fromkeys(marks) if mark not in plain]


@pytest.fixture(scope="module")
def model_text(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes the text side of a model of a family: the starter's tokens, and one for each of the family's marks."""

    def make(family: Family) -> ModelText:
        folder = tmp_path_factory.mktemp("model")
        for name in FILES:
            shutil.copy(STARTER / name, folder)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        added = tokenizer["added_tokens"]
        known = {one["content"] for one in added}
        for mark in marks_of(family):
            if mark not in known:
                added.append(
                    {**added[-1], "id": added[-1]["id"] + 1, "content": mark, "special": True}
                )
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        opened = "<think>\n" if family.reasoning and not family.in_messages else ""
        template = f"{{# {' '.join(family.signs)} </think> #}}{{{{ tools }}}}{opened}"
        (folder / "chat_template.jinja").write_text(template)
        return load_model_text(ModelFiles("test/model", folder, "folder", 0), family.name)

    return make


def request_for(
    tools: tuple[Tool, ...], choice: ToolChoice, asked: AnswerFormat | None = None
) -> ChatRequest:
    conversation = Conversation((Message("user", "Hi"),), tools=tools, tool_choice=choice)
    return ChatRequest("m", conversation, Origin("r", "/v1/chat/completions"), format=asked)


class Walk:
    """Draws texts of a grammar by chance, and looks for their ends when they grow long."""

    def __init__(self, text: ModelText, path: Path, seed: int) -> None:
        self._text = text
        self._vocabulary = Vocabulary(path)
        self._chosen = random.Random(seed)
        tokenizer = text.tokenizer
        self._pieces = [
            tokenizer.decode([token], skip_special_tokens=False) for token in range(len(tokenizer))
        ]

    def draw(self, constraint: Constraint, closers: Sequence[str]) -> str | None:
        """Return a text of the grammar; None when it would be too long."""
        matcher = self._vocabulary.matcher(constraint.grammar)
        tokens = list[int]()
        while len(tokens) < MOST_TOKENS:
            bits, may_end = matcher.allowed()
            said = self._text.tokenizer.decode(tokens[-40:], skip_special_tokens=False)
            assert not matcher.is_given_up, said
            allowed = [int(token) for token in np.flatnonzero(bits)]
            if may_end and (not allowed or self._chosen.random() < 0.3):
                return str(self._text.tokenizer.decode(tokens, skip_special_tokens=False))
            token = self._next(allowed, said, closers, is_long=len(tokens) > LONG)
            tokens.append(token)
            matcher.take(token)
        return None

    def _next(self, allowed: list[int], said: str, closers: Sequence[str], *, is_long: bool) -> int:
        if is_long or self._chosen.random() < 0.5:
            whole = [
                one
                for one in allowed
                if self._pieces[one] in closers and len(self._pieces[one]) > 1
            ]
            if whole:
                return whole[0]
            for wanted in _rests(said, closers):
                fitting = [one for one in allowed if wanted.startswith(self._pieces[one] or "\0")]
                if fitting:
                    return max(fitting, key=lambda one: len(self._pieces[one]))
        return self._chosen.choice(allowed)


def _rests(said: str, closers: Sequence[str]) -> Iterator[str]:
    """Yield what is missing of each closer, of which some may stand at the end of what was said."""
    for closer in closers:
        for length in range(len(closer) - 1, -1, -1):
            if said.endswith(closer[:length]):
                yield closer[length:]
                break


def read(request: ChatRequest, text: ModelText, answer: str) -> tuple[list[tuple[str, Any]], str]:
    """The calls of an answer with their arguments, and its text."""
    parser = parser_for(request, text)
    assert parser is not None
    deltas: list[Delta] = parser.feed(answer) + parser.finish()
    calls = [one for one in deltas if isinstance(one, ToolCallStarted)]
    found = list[tuple[str, Any]]()
    for call in calls:
        own = (one for one in deltas if isinstance(one, ToolCallDelta) and one.index == call.index)
        found.append((call.name, json.loads("".join(one.arguments for one in own))))
    return found, "".join(one.text for one in deltas if isinstance(one, TextDelta))


def closers_of(family: Family) -> list[str]:
    arguments = family.form.arguments if family.form else None
    found = [arguments.close] if isinstance(arguments, Parameters) else []
    found += [quote] if (quote := getattr(arguments, "quote", "")) else []
    # Within JSON a string is to end before anything else can.
    if family.form is None:
        return ['"', "<|end|>", CALL_BEGINS, "}", "]"]
    form = family.form
    return [*found, '"', form.last, form.tail + form.last, "}", "]", ")"]


def walks(
    text: ModelText, family: Family, request: ChatRequest, path: Path
) -> Iterator[tuple[list[tuple[str, Any]], str]]:
    """Read what several walks through the grammar of a request say."""
    encoded = text.encode(request.input)
    constraint = constraint_for(request, text, encoded.opening)
    assert constraint is not None
    walk, done = Walk(text, path, seed=len(family.name)), 0
    begin = family.form.begin if family.form and constraint.trigger_token_ids else ""
    for _ in range(WALKS):
        answer = walk.draw(constraint, closers_of(family))
        if answer is not None:
            done += 1
            whole = encoded.opening + begin + answer
            yield read(request, text, whole)
    assert done > WALKS // 2, "a walk that doesn't end"


def path_of(text: ModelText) -> Path:
    return Path(text.tokenizer.name_or_path)


@pytest.mark.parametrize("family", SAYABLE, ids=lambda one: one.name)
@pytest.mark.parametrize(
    "choice",
    [ToolChoice("required"), ToolChoice("required", is_parallel=False)],
    ids=["required", "one"],
)
def test_calls_that_must_be_made_are_calls_with_valid_arguments(
    model_text: Make, family: Family, choice: ToolChoice
) -> None:
    text, request = model_text(family), request_for(STRICT, choice)
    schemas = {tool.name: tool.parameters for tool in STRICT}
    for calls, said in walks(text, family, request, path_of(text)):
        assert calls
        assert len(calls) == 1 or choice.is_parallel
        assert not said.strip() or family.in_messages
        for name, arguments in calls:
            Draft202012Validator(schemas[name]).validate(arguments)


@pytest.mark.parametrize("family", SAYABLE, ids=lambda one: one.name)
@pytest.mark.parametrize("tools", [STRICT, LOOSE], ids=["strict", "loose"])
def test_a_named_call_is_that_call(
    model_text: Make, family: Family, tools: tuple[Tool, ...]
) -> None:
    text = model_text(family)
    for tool in tools:
        request = request_for(tools, ToolChoice("required", tool.name))
        for calls, said in walks(text, family, request, path_of(text)):
            assert len(calls) == 1, said
            [(name, arguments)] = calls
            assert name == tool.name
            assert isinstance(arguments, dict)
            if tool.is_strict:
                Draft202012Validator(tool.parameters).validate(arguments)


@pytest.mark.parametrize("family", SAYABLE, ids=lambda one: one.name)
@pytest.mark.parametrize("name", ["get_weather", None], ids=["named", "required"])
def test_a_forced_call_that_is_not_strict_has_the_types_members_and_values_of_its_schema(
    model_text: Make, family: Family, name: str | None
) -> None:
    text, request = model_text(family), request_for(LOOSE, ToolChoice("required", name))
    loosened = {"code": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}}
    schema = {**SCHEMA, "properties": {**PROPERTIES, **loosened}}
    seen = 0
    for calls, said in walks(text, family, request, path_of(text)):
        assert calls, said
        for called, arguments in calls:
            if called == "get_weather":
                Draft202012Validator(schema).validate(arguments)
                seen += 1
    assert seen


@pytest.mark.parametrize("name", ["hermes", "qwen3-coder", "gemma4", "lfm2", "gpt-oss"])
def test_a_forced_call_that_is_not_strict_is_never_refused_for_its_schema(
    model_text: Make, name: str
) -> None:
    family, names = one_of(name), [f"argument_{number}" for number in range(1000)]
    text = model_text(family)
    for schema in (
        {"properties": {"at": {"type": "string", "format": "nonsense", "pattern": "("}}},
        {"properties": {"a<b": {"not": {}}}, "required": ["a<b"]},
        {"properties": {"at": {"type": "array", "uniqueItems": True}}, "dependentRequired": {}},
        {"properties": {one: {"type": "integer"} for one in names}, "required": names},
        {
            "properties": {
                "at": {"anyOf": [{"type": "array", "items": {"enum": [one]}} for one in names]}
            }
        },
        {"properties": {"at": {"$ref": "#/$defs/gone"}, "by": {"type": "nonsense"}}},
        # What no call of it could satisfy.
        {"properties": {"at": {"$ref": "#"}}, "required": ["at"]},
    ):
        tool = Tool("look", None, {"type": "object", **schema})
        request = request_for((tool,), ToolChoice("required", "look"))
        constraint = constraint_for(request, text, text.encode(request.input).opening)
        assert constraint is not None
        Vocabulary(path_of(text)).matcher(constraint.grammar)


@pytest.mark.parametrize("family", SAYABLE, ids=lambda one: one.name)
def test_a_strict_call_that_may_be_made_has_valid_arguments(
    model_text: Make, family: Family
) -> None:
    text, request = model_text(family), request_for(STRICT, ToolChoice())
    schemas = {tool.name: tool.parameters for tool in STRICT}
    count = 0
    for calls, _ in walks(text, family, request, path_of(text)):
        for name, arguments in calls:
            count += 1
            Draft202012Validator(schemas[name]).validate(arguments)
    assert count or not (family.form and family.form.begin)


def test_a_format_holds_for_the_last_message_of_harmony(model_text: Make) -> None:
    text, asked = model_text(one_of("gpt-oss")), AnswerFormat("regex", "yes|no", "response_format")
    request = request_for((), ToolChoice(), asked)
    constraint = constraint_for(request, text, "")
    assert constraint is not None
    walk = Walk(text, path_of(text), seed=3)
    said = [walk.draw(constraint, [*LAST_MESSAGE, "yes"]) for _ in range(WALKS)]
    found = [read(request, text, answer)[1] for answer in said if answer is not None]
    assert found
    assert set(found) <= {"yes", "no"}


@pytest.mark.parametrize("family", SAYABLE, ids=lambda one: one.name)
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_of_all_tools_only_those_that_are_allowed_can_be_called(
    model_text: Make, family: Family, mode: Any
) -> None:
    text = model_text(family)
    request = request_for(LOOSE, ToolChoice(mode, allowed=("look",)))
    encoded = text.encode(request.input)
    # Of both the model is told, which keeps the prefix of its prompt.
    both = request_for(LOOSE, ToolChoice(mode))
    assert encoded.token_ids == text.encode(both.input).token_ids
    constraint = constraint_for(request, text, encoded.opening)
    assert constraint is not None
    begin = family.form.begin if family.form and constraint.trigger_token_ids else ""
    for tool in LOOSE:
        called = forced_call(text, family, (tool,), is_parallel=False)
        called = called.removeprefix(encoded.opening)
        called = called[called.index(begin) + len(begin) :]
        if family.form and begin and begin in (family.form.between or ""):
            called = called.removesuffix(family.form.last)
        assert begins(text, constraint, called) is (tool.name == "look"), called


def begins(text: ModelText, constraint: Constraint, answer: str) -> bool:
    """Whether a grammar has a text that begins so."""
    matcher = Vocabulary(path_of(text)).matcher(constraint.grammar)
    for token in text.tokenizer.encode(answer, add_special_tokens=False):
        bits, _ = matcher.allowed()
        if not bits[token]:
            return False
        matcher.take(token)
    return True


SAID = {"name": "Bern", "days": 3}
FORMAT = AnswerFormat(
    "json_schema",
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["name", "days"],
        "additionalProperties": False,
    },
    "response_format.json_schema.schema",
)
REFERRING = Tool(
    "get_weather",
    None,
    {**SCHEMA, "properties": {"city": {"type": "string"}, "place": {"$ref": "#/$defs/place"}}, "required": ["place"]},
    is_strict=True,
)  # fmt: skip


def lets_through(text: ModelText, constraint: Constraint, answer: str) -> bool:
    """Whether a grammar has this text, whatever tokens it is written with."""
    matcher = Vocabulary(path_of(text)).matcher(constraint.grammar)
    for token in text.tokenizer.encode(answer, add_special_tokens=False):
        bits, _ = matcher.allowed()
        if not bits[token]:
            return False
        matcher.take(token)
    return matcher.allowed()[1]


@pytest.mark.parametrize("family", SAYABLE, ids=lambda one: one.name)
@pytest.mark.parametrize(
    "tools", [STRICT, LOOSE, (REFERRING,)], ids=["strict", "loose", "referring"]
)
def test_beside_tools_an_answer_is_of_its_format_or_a_call(
    model_text: Make, family: Family, tools: tuple[Tool, ...]
) -> None:
    text, request = model_text(family), request_for(tools, ToolChoice(), FORMAT)
    constraint = constraint_for(request, text, text.encode(request.input).opening)
    assert constraint is not None
    said = ("<|channel|>final<|message|>" if family.in_messages else "") + json.dumps(SAID)
    assert lets_through(text, constraint, said)
    assert read(request, text, said) == ([], json.dumps(SAID))
    assert lets_through(text, constraint, said.replace("Bern", tools[0].name))
    assert not lets_through(text, constraint, said.replace("3", "three"))
    assert not lets_through(text, constraint, said.replace('"days"', '"parameters"'))
    called = forced_call(text, family, tools)
    assert lets_through(text, constraint, called), called
    calls, _ = read(request, text, called)
    assert {name for name, _ in calls} <= {tool.name for tool in tools}
    assert calls


def forced_call(
    text: ModelText, family: Family, tools: tuple[Tool, ...], *, is_parallel: bool = True
) -> str:
    """An answer that had to be calls, or one call."""
    request = request_for(tools, ToolChoice("required", is_parallel=is_parallel))
    opening = text.encode(request.input).opening
    constraint = constraint_for(request, text, opening)
    assert constraint is not None
    walk = Walk(text, path_of(text), seed=len(family.name))
    drawn = (walk.draw(constraint, closers_of(family)) for _ in range(WALKS))
    return opening + next(one for one in drawn if one is not None)


def test_a_format_beside_calls_that_no_grammar_says_is_refused(model_text: Make) -> None:
    text = model_text(one_of("deepseek-v3.2"))
    with pytest.raises(UnsupportedParameter, match="Leave out one of 'tools' and") as caught:
        constraint_for(request_for(LOOSE, ToolChoice(), FORMAT), text, "")
    assert caught.value.param == FORMAT.param
    assert constraint_for(request_for(LOOSE, ToolChoice("none"), FORMAT), text, "") is not None


def test_a_format_says_nothing_of_calls_that_must_be_made(model_text: Make) -> None:
    text = model_text(one_of("hermes"))
    for choice in (ToolChoice("required"), ToolChoice("required", "wait")):
        opening = text.encode(request_for(STRICT, choice).input).opening
        alone = constraint_for(request_for(STRICT, choice), text, opening)
        assert constraint_for(request_for(STRICT, choice, FORMAT), text, opening) == alone


# Each refers to the next one.
CHAIN: dict[str, Any] = {
    "$defs": {
        f"d{at}": {"type": "array", "items": {"$ref": f"#/$defs/d{at + 1}"}} for at in range(400)
    }
    | {"d400": {"type": "string"}}
}


def named(family: Family, schema: dict[str, Any]) -> ChatRequest:
    return request_for((Tool("look", None, schema, is_strict=True),), ToolChoice())


def one_of(name: str) -> Family:
    return next(one for one in FAMILIES if one.name == name)


@pytest.mark.parametrize(
    ("name", "schema", "reason"),
    [
        ("glm", {"properties": {"at": {"type": "string", "format": "date"}}}, "'format'"),
        ("glm", {"properties": {"at": {"type": "string", "maxLength": 5000}}}, "1000 characters"),
        ("glm", {"properties": {"at": {"enum": ["a</arg_value>"]}}}, "a</arg_value>"),
        ("glm", {"properties": {"at": {"enum": ["3", 3]}}}, "the value '3'"),
        ("glm", {"properties": {"a<b": {}}}, "argument named 'a<b'"),
        ("qwen3-coder", {"patternProperties": {"a": {}}}, "'patternProperties'"),
        ("qwen3-coder", {"properties": {"at": {"type": "string", "pattern": "^a|b$"}}}, "pattern"),
        ("minimax", {"anyOf": [{"required": ["a"]}]}, "'anyOf'"),
        ("lfm2", {"properties": {"a-b": {}}}, "argument named 'a-b'"),
        ("gemma4", {"properties": {"at": {"type": "array", "uniqueItems": True}}}, "'uniqueItems'"),
        ("gemma4", {"properties": {"at": {"type": ["string", "integer"]}}}, "integer, string"),
        (
            "gemma4",
            {"properties": {"at": CHAIN["$defs"]["d0"]}} | CHAIN,
            "100 schemas within each other",
        ),
        ("deepseek-v3.2", {"properties": {}}, "can't be held to a schema yet"),
        ("kimi-k3", {"properties": {}}, "can't be held to a schema yet"),
    ],
)
def test_what_a_family_s_form_can_not_say_is_refused(
    model_text: Make, name: str, schema: dict[str, Any], reason: str
) -> None:
    family = one_of(name)
    text = model_text(family)
    with pytest.raises(UnsupportedParameter, match=re.escape(reason)) as caught:
        constraint_for(named(family, {"type": "object", **schema}), text, "")
    assert caught.value.param == "tools[0].function.strict"


def test_a_strict_call_whose_mark_is_no_token_is_refused() -> None:
    files = ModelFiles("test/model", STARTER, "folder", 0)
    text = load_model_text(files, "mistral")
    with pytest.raises(UnsupportedParameter, match="does not begin with a token of its own"):
        constraint_for(named(one_of("mistral"), {}), text, "")
