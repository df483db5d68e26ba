"""What models write is told apart the same way wherever it is cut, and nothing of it is lost."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import mlx_manager
from mlx_manager.chat.events import (
    Delta,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from mlx_manager.chat.request import Tool
from mlx_manager.errors import ModelLoadFailed
from mlx_manager.mlx_server.families.family import FAMILIES, Family, family_of
from mlx_manager.mlx_server.families.messages import answer_parser

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "tags": {"type": "array"},
    },
}
TOOLS = (Tool("weather", "Tells the weather", SCHEMA), Tool("wait"))
BERN = {"city": "Bern", "days": 3}
TOKENIZER = Tokenizer.from_file(
    str(Path(mlx_manager.__file__).parent / "starter" / "tokenizer.json")
)
Call = tuple[str, Any]


def family(name: str, template: str = "") -> Family:
    (found, *_) = [one for one in FAMILIES if one.name == name]
    return family_of("".join(found.signs) + template)


def read(
    pieces: Sequence[str],
    of: Family,
    tools: tuple[Tool, ...] = TOOLS,
    *,
    is_parallel: bool = True,
) -> tuple[str, str, list[Call], list[str]]:
    """The text, the thoughts, the calls and the findings of an answer that comes in these pieces."""
    found = list[str]()
    parser = answer_parser(
        of, tools, is_parallel=is_parallel, note=lambda kind, _detail: found.append(kind)
    )
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += parser.feed(piece)
    deltas += parser.finish()
    calls = found.count("tool_call_began")
    is_cut = bool(calls) and found.count("tool_call_ended") == calls - 1
    assert is_cut or found.count("tool_call_ended") == calls or "tool_call_malformed" in found
    return (*gathered(deltas), [kind for kind in found if kind != "tool_call_ended"])


def gathered(deltas: Sequence[Delta]) -> tuple[str, str, list[Call]]:
    text = "".join(one.text for one in deltas if isinstance(one, TextDelta))
    thoughts = "".join(one.text for one in deltas if isinstance(one, ReasoningDelta))
    calls = [one for one in deltas if isinstance(one, ToolCallStarted)]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    return text, thoughts, [(call.name, _arguments(deltas, call.index)) for call in calls]


def _arguments(deltas: Sequence[Delta], index: int) -> Any:
    parts = (one for one in deltas if isinstance(one, ToolCallDelta) and one.index == index)
    text = "".join(part.arguments for part in parts)
    try:
        return json.loads(text)
    except ValueError:
        return text


def cuts(text: str) -> Iterator[list[str]]:
    """The text whole, in two pieces at each place, letter by letter, and in random pieces."""
    yield [text]
    yield from ([text[:at], text[at:]] for at in range(1, len(text)))
    yield list(text)
    ends = sorted({end for _, end in TOKENIZER.encode(text, add_special_tokens=False).offsets})
    yield [text[a:b] for a, b in pairwise([0, *ends])]
    chosen = random.Random(7)
    for _ in range(10):
        places = sorted(chosen.sample(range(len(text)), min(5, len(text))))
        yield [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


JSON_CALL = '{"name": "weather", "arguments": {"city": "Bern", "days": 3}}'
CALLED: list[tuple[str, str, list[Call]]] = [
    ("hermes", f"<tool_call>\n{JSON_CALL}\n</tool_call>", [("weather", BERN)]),
    # The closing mark is an end token for some, and left out by others.
    ("hermes", f"<tool_call>\n{JSON_CALL}", [("weather", BERN)]),
    (
        "hermes",
        f'<tool_call>{JSON_CALL}</tool_call>\n<tool_call>{{"name": "wait"}}</tool_call>',
        [("weather", BERN), ("wait", {})],
    ),
    (
        "hermes",
        '<tool_call>{"arguments": {"city": "Bern", "days": 3}, "name": "weather"}</tool_call>',
        [("weather", BERN)],
    ),
    (
        "hermes",
        '<tool_call>{"type": "function", "function": {"name": "wait", "arguments": "{}"}}</tool_call>',
        [("wait", {})],
    ),
    (
        "hermes",
        r'<tool_call>{"name": "weather", "arguments": {"city": "a\"}</tool_call>\u00e9", "tags": [{}]}}',
        [("weather", {"city": 'a"}</tool_call>é', "tags": [{}]})],
    ),
    (
        "qwen3-coder",
        "<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>",
        [("weather", BERN)],
    ),
    (
        "qwen3-coder",
        '<tool_call>\n<function=weather>\n<parameter=city>\n  "a"\n\nb < 3\n</parameter>\n<parameter=exact>\n'
        "True\n</parameter>\n</function>\n</tool_call>",
        [("weather", {"city": '  "a"\n\nb < 3', "exact": True})],
    ),
    (
        "glm",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>",
        [("weather", BERN)],
    ),
    ("glm", "<tool_call>wait</tool_call>", [("wait", {})]),
    ("mistral", f"[TOOL_CALLS] [{JSON_CALL}]", [("weather", BERN)]),
    (
        "mistral",
        '[TOOL_CALLS]weather[ARGS]{"city": "Bern", "days": 3}[TOOL_CALLS]wait[CALL_ID]a1b2[ARGS]{}',
        [("weather", BERN), ("wait", {})],
    ),
    (
        "kimi",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Bern", "days": 3}<|tool_call_end|><|tool_call_begin|>functions.wait:1'
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        [("weather", BERN), ("wait", {})],
    ),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Bern", "days": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        [("weather", BERN)],
    ),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>wait<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [("wait", {})],
    ),
    (
        "minimax",
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Bern</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n<invoke name="wait">\n</invoke>\n</minimax:tool_call>',
        [("weather", BERN), ("wait", {})],
    ),
    (
        "lfm2",
        '<|tool_call_start|>[weather(city="Bern", days=3), wait()]<|tool_call_end|>',
        [("weather", BERN), ("wait", {})],
    ),
    ("granite", f"<|tool_call|>[{JSON_CALL}]", [("weather", BERN)]),
    ("llama3", '{"name": "weather", "parameters": {"city": "Bern", "days": 3}}', [("weather", BERN)]),
    ("llama3", f"<|python_tag|>{JSON_CALL}", [("weather", BERN)]),
    ("llama3", f"<|python_tag|>{JSON_CALL}; {JSON_CALL}", [("weather", BERN), ("weather", BERN)]),
    ("llama3", '[weather(city="Bern", days=3)]', [("weather", BERN)]),
    ("llama3", f"[{JSON_CALL}]", [("weather", BERN)]),
    ("llama3", '<|python_tag|>brave.call(query="Bern")', [("brave.call", {"query": "Bern"})]),
    ("llama4", "<|python_start|>[weather(city='Bern', days=3)]<|python_end|>", [("weather", BERN)]),
    ("llama4", f"<|python_start|>{JSON_CALL}<|python_end|>", [("weather", BERN)]),
    (
        "llama4",
        r"""[weather(city='Martha\'s "V"\x41\n', tags=[1, -2.5, None, (True,), {'a': .5}]), wait()]""",
        [
            ("weather", {"city": "Martha's \"V\"A\n", "tags": [1, -2.5, None, [True], {"a": 0.5}]}),
            ("wait", {}),
        ],
    ),
    ("llama4", '{"name": "wait", "parameters": {}}', [("wait", {})]),
    (
        "lfm2",
        "<|tool_call_start|>[weather(city=\"\"\"a\n'b' \"c\" \"\"\", days = 0x10,)]<|tool_call_end|>",
        [("weather", {"city": "a\n'b' \"c\" ", "days": 16})],
    ),
    ("lfm2", f"<|tool_call_start|>[{JSON_CALL}]<|tool_call_end|>", [("weather", BERN)]),
    ("gemma3", f"```json\n{JSON_CALL}\n```", [("weather", BERN)]),
    ("gemma3", '```tool_code\nweather(city="Bern", days=3)\n```', [("weather", BERN)]),
    ("gemma3", '[weather(city="Bern", days=3), wait()]', [("weather", BERN), ("wait", {})]),
    (
        "functiongemma",
        "<start_function_call>call:weather{city:<escape>Bern<escape>,days:3}<end_function_call>",
        [("weather", BERN)],
    ),
    ("functiongemma", "<start_function_call>call:wait{}<end_function_call>", [("wait", {})]),
    (
        "gemma4",
        '<|tool_call>call:weather{city:<|"|>a "b"\n{c}<|"|>,exact:true,tags:[1,<|"|>x<|"|>,{y-z:None}]}'
        "<tool_call|><|tool_call>call:wait{}<tool_call|>",
        [
            ("weather", {"city": 'a "b"\n{c}', "exact": True, "tags": [1, "x", {"y-z": None}]}),
            ("wait", {}),
        ],
    ),
    (
        "deepseek-v3.2",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">'
        'Bern</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        [("weather", BERN)],
    ),
    (
        "deepseek-v3.2",
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">'
        'Bern</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        [("weather", BERN)],
    ),
    (
        "gpt-oss",
        "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
        '{"city": "Bern", "days": 3}',
        [("weather", BERN)],
    ),
    # The recipient stands before the channel, no content type, other ends than usual.
    (
        "gpt-oss",
        ' to=functions.weather<|channel|>commentary<|message|>{"city": "Bern", "days": 3}<|call|><|start|>'
        "assistant to=functions.wait<|channel|>commentary json<|message|>{}<|end|>",
        [("weather", BERN), ("wait", {})],
    ),
    (
        "gpt-oss",
        "<|channel|>analysis to=functions.wait code<|message|> {}<|call|>",
        [("wait", {})],
    ),
    (
        "kimi-k3",
        '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>Bern<|close|>argument<|sep|>'
        '<|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|>'
        '<|open|>call tool="wait" index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
        [("weather", BERN), ("wait", {})],
    ),
    # All arguments as one object, no index, and a response before the calls that says nothing.
    (
        "kimi-k3",
        '<|open|>tools<|sep|><|open|>call tool="weather"<|sep|><|open|>json type="object"<|sep|>'
        '{"city": "Bern", "days": 3}<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>'
        "<|close|>message<|sep|><|end_of_msg|>",
        [("weather", BERN)],
    ),
    # Raw strings, line breaks and all; names in quotes that need them; what is no string is JSON.
    (
        "kimi-k3",
        '<|open|>tools<|sep|>\n<|open|>call tool="weather" index="1"<|sep|>\n'
        '<|open|>argument key="city" type="string"<|sep|>\n a < "b"\n<|close|>argument<|sep|>'
        '<|open|>argument key="&quot;a&amp;b" type="string"<|sep|>3<|close|>argument<|sep|>'
        '<|open|>argument key="tags" type="array"<|sep|>["<|close|>argument<|sep|>", {"x": null}]'
        "<|close|>argument<|sep|><|close|>call<|sep|>\n<|close|>tools<|sep|>",
        [("weather", {"city": '\n a < "b"\n', '"a&b': "3", "tags": ["<|close|>argument<|sep|>", {"x": None}]})],
    ),
    # The shortest forms of GLM and MiniMax, and what the model wrote between quotes of its own.
    (
        "glm",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Bern</arg_value><arg_key>tags</arg_key>"
        '<arg_value>["</arg_value>"]</arg_value></tool_call>',
        [("weather", {"city": "Bern", "tags": ["</arg_value>"]})],
    ),
    ("granite", f"<|tool_call|> [{JSON_CALL}, {JSON_CALL}]", [("weather", BERN), ("weather", BERN)]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer", "calls"), CALLED)
def test_calls_of_every_family_are_read_wherever_they_are_cut(
    name: str, answer: str, calls: list[Call]
) -> None:
    for pieces in cuts(answer):
        text, _, found, findings = read(pieces, family(name))
        assert (text.strip(), found) == ("", calls), pieces
        assert findings == ["tool_call_began"] * len(calls)


@pytest.mark.parametrize(("name", "answer", "calls"), CALLED)
def test_text_before_a_call_is_text(name: str, answer: str, calls: list[Call]) -> None:
    if not any(answer.startswith(mark) for mark in family(name).marks):
        return
    for pieces in cuts(f"Let me see: 1 < 2.\n\n{answer}"):
        text, _, found, _ = read(pieces, family(name))
        assert (text.rstrip(), found) == ("Let me see: 1 < 2.", calls), pieces


@pytest.mark.parametrize(
    "one", [one for one in FAMILIES if not one.in_messages], ids=lambda one: one.name
)
def test_without_tools_and_thoughts_every_text_comes_through_as_it_is(one: Family) -> None:
    one = replace(one, reasoning=None)
    marks = " ".join(sorted(one.marks - {*one.framing}))
    answer = f" {{a}} {marks} <thi {JSON_CALL}\n"
    for pieces in cuts(answer):
        assert read(pieces, one, ())[:3] == (answer, "", [])


NO_CALLS = [
    ("hermes", "<tool_call>look at this</tool_call> and"),
    ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
    ("hermes", "<tool_call>"),
    ("hermes", '<tool_call>{"na'),
    ("qwen3-coder", "<tool_call><function=a b>"),
    ("mistral", "[TOOL_CALLS]weather"),
    ("kimi", "<|tool_call_begin|>x<|tool_call_argument_begin|>3"),
    ("lfm2", "<|tool_call_start|>[weather(3)]<|tool_call_end|>"),
    ("lfm2", "<|tool_call_start|>[3]<|tool_call_end|>"),
    ("kimi-k3", "<|open|>tools<|sep|>nothing<|close|>tools<|sep|>"),
    ("kimi-k3", '<|open|>tools<|sep|><|open|>call tool="a b"<|sep|><|close|>call<|sep|>'),
    ("kimi-k3", '<|open|>tools<|sep|><|open|>call index="1"<|sep|><|close|>call<|sep|>'),
    ("llama3", '{"name": "Bob", "parameters": {}}'),
    ("llama3", '{"weather": "fine"}'),
    ("llama3", "[1, 2, 3]"),
    ("llama3", "[weather(**x)]"),
]


@pytest.mark.parametrize(("name", "answer"), NO_CALLS)
def test_what_is_no_call_is_given_back_as_text(name: str, answer: str) -> None:
    for pieces in cuts(answer):
        text, thoughts, calls, findings = read(pieces, family(name))
        assert (text, thoughts, calls) == (answer, "", []), pieces
        assert "tool_call_malformed" in findings


def test_a_call_that_goes_wrong_behind_its_beginning_keeps_all_that_was_written() -> None:
    answer = '<tool_call>{"name": "weather", "arguments": {"city": "Bern", oops}}</tool_call> Done.'
    for pieces in cuts(answer):
        text, _, calls, findings = read(pieces, family("hermes"))
        assert calls == [("weather", '{"city": "Bern", oops}}')]
        assert text == " Done."
        assert findings == ["tool_call_began", "tool_call_malformed"]


def test_a_call_that_is_cut_short_is_no_malformed_one() -> None:
    _, _, calls, findings = read([f"<tool_call>{JSON_CALL[:-8]}"], family("hermes"))
    assert calls == [("weather", '{"city": "Bern", "da')]
    assert findings == ["tool_call_began"]


REPAIRED = [
    ('{"a": True, "b": None, "c": False}', {"a": True, "b": None, "c": False}),
    ("{'a': 'it\\'s \"so\"'}", {"a": 'it\'s "so"'}),
    ('{"a": [1, 2,], }', {"a": [1, 2]}),
    ('{"a": "two\nlines\tand"}', {"a": "two\nlines\tand"}),
]


@pytest.mark.parametrize(("written", "meant"), REPAIRED)
def test_slips_whose_meaning_is_certain_are_repaired(written: str, meant: Any) -> None:
    for pieces in cuts(f'<tool_call>{{"name": "wait", "arguments": {written}}}</tool_call>'):
        _, _, calls, findings = read(pieces, family("hermes"))
        assert calls == [("wait", meant)], pieces
        assert "tool_call_repaired" in findings


@pytest.mark.parametrize(
    "value", ["0", "-1.5e+3", '"\\ud83d\\ude00 \\n"', "[]", "[[1, {}], null, true]", '{"a": {"b": ""}}']
)  # fmt: skip
def test_arguments_come_through_as_they_were_written(value: str) -> None:
    for pieces in cuts(f'<tool_call>{{"name": "wait", "arguments": {{"x": {value}}}}}</tool_call>'):
        text, _, calls, findings = read(pieces, family("hermes"))
        assert (text, calls, findings) == (
            "",
            [("wait", {"x": json.loads(value)})],
            ["tool_call_began"],
        )


@pytest.mark.parametrize(
    "value", ["01", "1.", "nul", "truee", "+1", '"\\x"', '"\\u12', "[1 2]", "{1: 2}"]
)
def test_what_no_json_has_is_not_made_into_some(value: str) -> None:
    written = f'{{"x": {value}}}}}'
    for pieces in cuts(f'<tool_call>{{"name": "wait", "arguments": {written}</tool_call>'):
        _, _, calls, findings = read(pieces, family("hermes"))
        assert calls == [("wait", written)], pieces
        assert findings == ["tool_call_began", "tool_call_malformed"]


def test_deep_nesting_ends_as_text_and_not_as_a_failure() -> None:
    answer = f'<tool_call>{{"arguments": {"[" * 3000}'
    assert read([answer], family("hermes"))[0] == answer


HALF_A_PAIR = "\\ud800"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("hermes", "<tool_call>" + '{"function":' * 2000),
        ("hermes", f'<tool_call>{{"name": "{HALF_A_PAIR}", "arguments": {{}}}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
        ("hermes", f'<tool_call>{{"name": "wait", "arguments": "{"[" * 100_000}"}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "wait", "arguments": "{\\"n\\": NaN}"}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": "x", "name": "wait"}</tool_call>'),
        ("lfm2", "<|tool_call_start|>[(lambda: 0)(n=1)]<|tool_call_end|>"),
        ("minimax", "<minimax:tool_call>nothing of that kind</minimax:tool_call>"),
    ],
)
def test_what_no_client_could_read_as_a_call_is_text(name: str, answer: str) -> None:
    for pieces in ([answer], list(answer)):
        assert read(pieces, family(name)) == (answer, "", [], ["tool_call_malformed"])


@pytest.mark.parametrize(
    "value",
    ["[" * 100_000, "NaN", "(1e999,)", "'\\ud800'", "1" * 6000],
    ids=lambda value: value[:8],
)
def test_a_value_without_quotes_is_json_that_every_client_can_read(value: str) -> None:
    answer = f"<tool_call><function=wait><parameter=n>{value}</parameter></function></tool_call>"
    parser = answer_parser(family("qwen3-coder"), TOOLS)
    deltas = parser.feed(answer) + parser.finish()
    text = "".join(one.arguments for one in deltas if isinstance(one, ToolCallDelta))
    text.encode()
    found = json.loads(text, parse_constant=pytest.fail)["n"]
    assert found == ("\ud800" if "ud800" in value else value)


def test_half_a_surrogate_pair_stays_an_escape() -> None:
    written = r'"{\"city\": \"\\ud800\"}"'
    answer = f'<tool_call>{{"name": "weather", "arguments": {written}}}</tool_call>'
    parser = answer_parser(family("hermes"), TOOLS)
    deltas = parser.feed(answer) + parser.finish()
    (arguments,) = [one.arguments for one in deltas if isinstance(one, ToolCallDelta)]
    assert arguments == '{"city": "\\ud800"}'


def test_arguments_that_come_twice_are_one_call() -> None:
    twice = '{"name": "wait", "arguments": {"n": 1}, "arguments": {"n": 2}}'
    for pieces in cuts(f"<tool_call>{twice}</tool_call>"):
        assert read(pieces, family("hermes"))[2] == [("wait", {"n": 1})]


def test_white_space_without_end_takes_no_more_time_the_more_there_is() -> None:
    parser = answer_parser(family("hermes"), TOOLS)
    began_s = time.process_time()
    assert sum(len(parser.feed(" ")) for _ in range(300_000)) == 0
    (delta,) = parser.feed("x")
    # Joined anew for each piece it took 15 s.
    assert time.process_time() - began_s < 5
    assert delta == TextDelta(" " * 300_000 + "x")


def test_thoughts_are_told_from_the_answer_without_the_space_around_them() -> None:
    thinks = family("hermes", "<think></think>")
    for pieces in cuts("<think>\nIt is 1 < 2,\nso </thi yes.\n</think>\n\nYes.\n"):
        assert read(pieces, thinks, ())[:2] == ("Yes.\n", "It is 1 < 2,\nso </thi yes.")


def test_thoughts_come_before_text_and_calls() -> None:
    thinks = family("hermes", "<think></think>")
    answer = f"<think>\nHm.\n</think>\n\nI look.\n<tool_call>{JSON_CALL}</tool_call>"
    for pieces in cuts(answer):
        text, thoughts, calls, findings = read(pieces, thinks)
        assert (text, thoughts, calls) == ("I look.", "Hm.", [("weather", BERN)])
        assert findings == ["reasoning_began", "reasoning_ended", "tool_call_began"]


def test_empty_thoughts_are_none_and_those_that_never_end_are_all() -> None:
    thinks = family("hermes", "<think></think>")
    assert read(["<think>\n\n</think>\n\nYes."], thinks)[:2] == ("Yes.", "")
    assert read(["<think>\nAnd so", " on "], thinks)[:2] == ("", "And so on")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("hermes", f"<tool_call>{JSON_CALL}</tool_call><tool_call>{JSON_CALL}</tool_call>"),
        ("mistral", f"[TOOL_CALLS][{JSON_CALL}, {JSON_CALL}]"),
        ("llama3", '[weather(city="Bern", days=3), weather(city="Basel", days=1)]'),
        ("llama4", '<|python_start|>[weather(city="Bern", days=3), weather()]<|python_end|>'),
        ("lfm2", '<|tool_call_start|>[weather(city="Bern", days=3), weather()]<|tool_call_end|>'),
    ],
)
def test_one_call_is_enough_where_they_must_not_be_parallel(name: str, answer: str) -> None:
    for pieces in cuts(answer):
        assert read(pieces, family(name), is_parallel=False)[2] == [("weather", BERN)]


def test_arguments_leave_as_they_come() -> None:
    parser = answer_parser(family("hermes"), TOOLS)
    parser.feed('<tool_call>{"name": "weather", "arguments": {"city": "Be')
    assert parser.feed("rn an") == [ToolCallDelta(0, "rn an")]


@pytest.mark.parametrize(
    ("template", "name", "reasoning"),
    [
        ("{% if tools %}<tool_call>{% endif %}", "hermes", None),
        ("<tool_call><function= <think></think>", "qwen3-coder", ("<think>", "</think>")),
        ("[TOOL_CALLS] [THINK][/THINK]", "mistral", ("[THINK]", "[/THINK]")),
        ("<|start_header_id|>ipython tools", "llama3", None),
        ("<|header_start|>ipython<|header_end|> tools", "llama4", None),
        ("<start_of_turn>model", "gemma3", None),
        ("<start_of_turn>model <start_function_call>", "functiongemma", None),
        ("<|tool_call> <tool_call|>", "gemma4", ("<|channel>thought", "<channel|>")),
        (
            "<|start|>assistant<|channel|>analysis<|message|><|call|>",
            "gpt-oss",
            ("<|channel|>analysis<|message|>", "<|end|>"),
        ),
        ("{{ messages }}", "hermes", None),
    ],
)
def test_a_family_is_told_from_the_template(
    template: str, name: str, reasoning: tuple[str, str] | None
) -> None:
    found = family_of(template)
    assert (found.name, found.reasoning) == (name, reasoning)


def test_a_family_can_be_set_by_name() -> None:
    assert family_of("<tool_call>", "mistral").name == "mistral"
    fenced = family_of("<｜tool▁sep｜> ```json", "deepseek").form
    assert fenced != family_of("no sign of it", "deepseek").form
    with pytest.raises(ModelLoadFailed, match=r"no family 'nobody'.* hermes,"):
        family_of("<tool_call>", "nobody")


MALFORMED: list[tuple[str, str, str, list[Call], list[str]]] = [
    # The model forgot the last brace, or wrote one too many.
    (
        "hermes",
        '<tool_call>{"name": "wait", "arguments": {"n": 1}\n</tool_call>',
        "",
        [("wait", {"n": 1})],
        ["tool_call_began", "tool_call_repaired"],
    ),
    (
        "hermes",
        '<tool_call>{"name": "wait", "arguments": {"n": 1}}}\n</tool_call>',
        "",
        [("wait", {"n": 1})],
        ["tool_call_began", "tool_call_repaired"],
    ),
    (
        "hermes",
        '<tool_call>{"name": "wait", "arguments": {"n": 1}}} so',
        "} so",
        [("wait", {"n": 1})],
        ["tool_call_began", "tool_call_malformed"],
    ),
    # Arguments beside the name, where the tool has them.
    (
        "hermes",
        '<tool_call>{"name": "weather", "city": "Bern", "days": 3}</tool_call>',
        "",
        [("weather", BERN)],
        ["tool_call_began", "tool_call_repaired"],
    ),
    (
        "hermes",
        '<tool_call>{"name": "weather", "town": "Bern"}</tool_call>',
        '<tool_call>{"name": "weather", "town": "Bern"}</tool_call>',
        [],
        ["tool_call_malformed"],
    ),
    # Behind a complete call.
    (
        "granite",
        f"<|tool_call|>[{JSON_CALL}, oops",
        ", oops",
        [("weather", BERN)],
        ["tool_call_began", "tool_call_malformed"],
    ),
    (
        "llama3",
        '[weather(city="Bern", days=3), nobody(a=1)]',
        ", nobody(a=1)]",
        [("weather", BERN)],
        ["tool_call_began", "tool_call_malformed"],
    ),
    (
        "lfm2",
        '<|tool_call_start|>[weather(city="Bern", days=oops)]<|tool_call_end|>!',
        "!",
        [("weather", '{"city": "Bern", days=oops)]')],
        ["tool_call_began", "tool_call_malformed"],
    ),
    (
        "gemma4",
        '<|tool_call>call:weather{city:<|"|>Bern<|"|>,days:oops}<tool_call|>!',
        "!",
        [("weather", '{"city":"Bern","days":oops}')],
        ["tool_call_began", "tool_call_malformed"],
    ),
    ("gemma4", "<|tool_call>weather{}<tool_call|>", "<|tool_call>weather{}<tool_call|>", [], ["tool_call_malformed"]),
    (
        "glm",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value> oops</tool_call>!",
        "!",
        [("weather", '{"city": "Bern" oops')],
        ["tool_call_began", "tool_call_malformed"],
    ),
    (
        "minimax",
        '<minimax:tool_call><invoke name="weather">oops</invoke></minimax:tool_call>',
        "oops",
        [("weather", {})],
        ["tool_call_began", "tool_call_malformed"],
    ),
    (
        "kimi",
        '<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": Bern}<|tool_call_end|>!',
        "!",
        [("weather", '{"city": Bern}')],
        ["tool_call_began", "tool_call_malformed"],
    ),
    (
        "kimi-k3",
        '<|open|>tools<|sep|><|open|>call tool="weather"<|sep|><|open|>json type="object"<|sep|>{"city": Bern}'
        "<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>!",
        "!",
        [("weather", '{"city": Bern}<|close|>json<|sep|><|close|>call<|sep|>')],
        ["tool_call_began", "tool_call_malformed"],
    ),
    # Arguments by name and as one object together.
    (
        "kimi-k3",
        '<|open|>tools<|sep|><|open|>call tool="weather"<|sep|><|open|>argument key="city"<|sep|>Bern'
        '<|close|>argument<|sep|><|open|>json type="object"<|sep|>{}<|close|>json<|sep|><|close|>tools<|sep|>!',
        "!",
        [("weather", '{"city": "Bern"<|open|>json type="object"<|sep|>{}<|close|>json<|sep|>')],
        ["tool_call_began", "tool_call_malformed"],
    ),
    (
        "deepseek",
        "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>Bern<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>Bern<｜tool▁call▁end｜>",
        [],
        ["tool_call_malformed"],
    ),
    (
        "mistral",
        '[TOOL_CALLS]weather[ARGS]{"city": "Bern", "days": 3} Done.',
        " Done.",
        [("weather", BERN)],
        ["tool_call_began"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer", "text", "calls", "findings"), MALFORMED)
def test_what_is_wrong_in_a_call_is_repaired_or_kept(
    name: str, answer: str, text: str, calls: list[Call], findings: list[str]
) -> None:
    for pieces in cuts(answer):
        assert read(pieces, family(name)) == (text, "", calls, findings), pieces


TYPED: list[tuple[Any, str, Any]] = [
    ({"type": "integer"}, "3", 3),
    ({"type": "integer"}, '"3"', 3),
    ({"type": "boolean"}, "True", True),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "3", "3"),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", None),
    ({"type": ["string", "integer"]}, "3", 3),
    ({"type": ["string", "null"]}, "[1]", "[1]"),
    ({"$ref": "#/$defs/town"}, "3", "3"),
    ({"allOf": [{"$ref": "#/$defs/town"}]}, "true", "true"),
    ({"enum": ["1", "2"]}, "1", "1"),
    ({"enum": ["1", 2]}, "2", 2),
    ({"type": "array"}, "['a', (1,)]", ["a", [1]]),
    ({"type": "object"}, "{'a': None}", {"a": None}),
    ({"type": "object"}, "no object", "no object"),
    (True, "3", 3),
    ({"$ref": "#/$defs/round"}, "3", 3),
]


@pytest.mark.parametrize(("schema", "written", "meant"), TYPED)
def test_a_value_without_quotes_is_of_a_type_that_its_schema_has(
    schema: Any, written: str, meant: Any
) -> None:
    defined = {"town": {"type": "string"}, "round": {"$ref": "#/$defs/round"}}
    tool = Tool("wait", None, {"properties": {"n": schema}, "$defs": defined})
    answer = (
        f"<tool_call><function=wait><parameter=n>\n{written}\n</parameter></function></tool_call>"
    )
    for pieces in cuts(answer):
        assert read(pieces, family("qwen3-coder"), (tool,))[2] == [("wait", {"n": meant})], pieces


@pytest.mark.parametrize(("name", "answer", "calls"), CALLED)
def test_nothing_is_dropped_of_what_is_almost_a_call(
    name: str, answer: str, calls: list[Call]
) -> None:
    chosen = random.Random(f"{name} {answer}")
    for _ in range(80):
        mutated = f"I look. {mutant(answer, chosen)} Then"
        whole, by_letter = (read(pieces, family(name)) for pieces in ([mutated], list(mutated)))
        assert whole == by_letter, mutated
        text, thoughts, found, _ = whole
        said = text + thoughts + json.dumps(found, ensure_ascii=False)
        for word in ("Bern", "I look.", "Then"):
            assert said.count(word) >= mutated.count(word), mutated


def mutant(answer: str, chosen: random.Random) -> str:
    """The answer with one to three letters left out, doubled or changed, or cut short."""
    for _ in range(chosen.randint(1, 3)):
        at = chosen.randrange(len(answer))
        kind = chosen.randrange(4)
        other = ("", answer[at] * 2, chosen.choice("{}[]()<>\"',:=x\n"), "")[kind]
        answer = answer[:at] + other + answer[at + (kind != 3) :] if kind != 3 else answer[: at + 1]
    return answer
