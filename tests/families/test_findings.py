"""Whatever is repaired, or left out, in what a model writes around its calls is told, wherever it is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_manager.chat.events import FindingKind
from mlx_manager.chat.request import Tool
from mlx_manager.mlx_server.families.messages import answer_parser
from tests.families.test_parser import BERN, Call, cuts, family, read

BEGAN, REPAIRED, MALFORMED = "tool_call_began", "tool_call_repaired", "tool_call_malformed"
LEFT_OUT = "tool_call_left_out"
WAIT = '{"name": "wait", "arguments": {}}'
HARMONY = "<|channel|>commentary to=functions.wait<|message|>"
DSML = "｜DSML｜"


def left_out(pieces: list[str], name: str, *, is_parallel: bool) -> list[str | int | None]:
    """How much of an answer that comes in these pieces is said to be left out."""
    sizes = list[str | int | None]()

    def note(kind: FindingKind, detail: str | int | None) -> None:
        if kind == LEFT_OUT:
            sizes.append(detail)

    parser = answer_parser(family(name), (Tool("wait"),), is_parallel=is_parallel, note=note)
    for piece in pieces:
        parser.feed(piece)
    parser.finish()
    return sizes


@pytest.mark.parametrize(
    ("name", "answer", "meant"),
    [
        ("hermes", '<tool_call>{"name": "wait", "arguments": {"n": True}}</tool_call>', True),
        ("mistral", '[TOOL_CALLS]wait[ARGS]{"n": [1,]}', [1]),
        ("kimi", "<|tool_call_begin|>functions.wait:0<|tool_call_argument_begin|>{'n': 1}", 1),
        ("gpt-oss", f'{HARMONY}{{"n": None}}<|call|>', None),
        ("gemma4", "<|tool_call>call:wait{n:[1,]}<tool_call|>", [1]),
        ("lfm2", "<|tool_call_start|>[wait(n='a\nb')]<|tool_call_end|>", "a\nb"),
    ],
)
@pytest.mark.parametrize("is_parallel", [True, False])
def test_a_repair_is_told_also_in_the_only_call_wanted(
    name: str, answer: str, meant: Any, is_parallel: bool
) -> None:
    for pieces in cuts(answer):
        _, _, calls, findings = read(pieces, family(name), is_parallel=is_parallel)
        assert calls == [("wait", {"n": meant})], pieces
        assert {*findings} == {BEGAN, REPAIRED}, pieces


def test_a_message_without_arguments_is_told_also_in_the_only_call_wanted() -> None:
    for pieces in cuts(f"{HARMONY}<|call|>"):
        assert read(pieces, family("gpt-oss"), is_parallel=False)[3] == [BEGAN, REPAIRED]


def test_a_repair_is_told_of_a_call_that_goes_wrong_behind_it() -> None:
    for pieces in cuts('<tool_call>{"name": "wait", "arguments": {"a": True, oops}}</tool_call>'):
        _, _, calls, findings = read(pieces, family("hermes"))
        assert calls == [("wait", '{"a": true, oops}}')]
        assert findings == [BEGAN, REPAIRED, MALFORMED]


def test_no_repair_is_told_of_a_call_that_is_text() -> None:
    answer = "<tool_call>{'name': 'wait', oops}</tool_call>"
    for pieces in cuts(answer):
        assert read(pieces, family("hermes")) == (answer, "", [], [MALFORMED])


@pytest.mark.parametrize(
    ("name", "answer", "beyond"),
    [
        ("hermes", f"<tool_call>{WAIT}</tool_call>", ""),
        ("hermes", f"<tool_call>\n{WAIT}\n</tool_call>\nDone now.", "Donenow."),
        ("hermes", f"<tool_call>{WAIT}</tool_call><tool_call>{WAIT}", f"<tool_call>{WAIT}"),
        ("mistral", f"[TOOL_CALLS][{WAIT}, {WAIT}]", f",{WAIT}]"),
        ("mistral", "[TOOL_CALLS]wait[ARGS]{}[TOOL_CALLS]wait[ARGS]{}", "[TOOL_CALLS]wait[ARGS]{}"),
        ("lfm2", "<|tool_call_start|>[wait(), wait(a=1)]<|tool_call_end|>", ",wait(a=1)]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[wait(), oops]<|tool_call_end|>", ",oops]<|tool_call_end|>"),
        ("llama3", f"{WAIT}; {WAIT}", f";{WAIT}"),
        (
            "minimax",
            '<minimax:tool_call><invoke name="wait"></invoke>\nso <invoke name="wait"></invoke></minimax:tool_call>',
            'so<invokename="wait"></invoke></minimax:tool_call>',
        ),
        # Marks that say nothing are not counted.
        (
            "kimi",
            "<|tool_call_begin|>wait:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
            "",
        ),
        ("gpt-oss", f"{HARMONY}{{}}<|call|>", ""),
        ("gpt-oss", f"{HARMONY}{{}}<|end|><|channel|>final<|message|>Done.", "finalDone."),
    ],
)  # fmt: skip
def test_what_stands_behind_the_only_call_wanted_is_told_by_its_size(
    name: str, answer: str, beyond: str
) -> None:
    sizes = [len("".join(beyond.split()))] if beyond else []
    for pieces in cuts(answer):
        text, _, calls, findings = read(pieces, family(name), is_parallel=False)
        assert (text, calls) == ("", [("wait", {})]), pieces
        assert findings == [BEGAN, *[LEFT_OUT] * len(sizes)], pieces
        assert left_out(pieces, name, is_parallel=False) == sizes, pieces


@pytest.mark.parametrize(
    ("call", "beside"),
    [
        ('{"name": "wait", "arguments": {"n": 1}, "arguments": {"n": 23}}', '{"n": 23}'),
        ('{"name": "wait", "arguments": {"n": 1}, "why": "so"}', '"so"'),
        ('{"why": "so", "name": "wait", "arguments": {"n": 1}}', '"so"'),
        ('{"name": "wait", "arguments": "", "arguments": {"n": 1}}', '""'),
        ('{"name": "wait", "id": "a1", "type": "function", "arguments": {"n": 1}}', ""),
    ],
)
def test_what_a_call_has_no_place_for_is_told_by_its_size(call: str, beside: str) -> None:
    sizes = [len(beside)] if beside else []
    for pieces in cuts(f"<tool_call>{call}</tool_call>"):
        _, _, calls, _ = read(pieces, family("hermes"))
        assert calls == [("wait", {"n": 1})], pieces
        assert left_out(pieces, "hermes", is_parallel=True) == sizes, pieces


# A value without quotes, and whether that it is read as what its schema says is a repair.
PLAIN = [
    ("integer", "3", 3, False),
    ("boolean", "True", True, False),
    ("string", "3", "3", False),
    ("integer", '"3"', 3, True),
    ("boolean", '"true"', True, True),
    ("array", "['a', 1]", ["a", 1], True),
    ("array", '["a", 1]', ["a", 1], False),
    ("object", "no object", "no object", False),
]


@pytest.mark.parametrize(("kind", "written", "meant", "is_repaired"), PLAIN)
def test_a_plain_value_that_is_repaired_is_told(
    kind: str, written: str, meant: Any, is_repaired: bool
) -> None:
    tools = (Tool("wait", None, {"properties": {"n": {"type": kind}}}),)
    answer = f"<tool_call><function=wait><parameter=n>{written}</parameter></function></tool_call>"
    for pieces in cuts(answer):
        _, _, calls, findings = read(pieces, family("qwen3-coder"), tools)
        assert calls == [("wait", {"n": meant})], pieces
        assert findings == [BEGAN, REPAIRED][: 1 + is_repaired], pieces


def test_a_string_that_its_schema_has_another_type_for_is_repaired_in_deepseek_s_form() -> None:
    answer = (
        f'<{DSML}function_calls><{DSML}invoke name="weather"><{DSML}parameter name="days" string="true">3'
        f"</{DSML}parameter></{DSML}invoke></{DSML}function_calls>"
    )
    for pieces in cuts(answer):
        _, _, calls, findings = read(pieces, family("deepseek-v3.2"))
        assert (calls, findings) == ([("weather", {"days": 3})], [BEGAN, REPAIRED])


SCHEMA = {
    "properties": {
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "tags": {"type": "array"},
        "at": {"$ref": "#/$defs/place"},
        "city": {"type": "string"},
        "either": {"type": ["string", "integer"]},
    },
    "$defs": {"place": {"type": "object"}},
}
FITTED: list[tuple[str, str, Any, bool]] = [
    ("days", '"5"', 5, True),
    ("exact", '"true"', True, True),
    ("exact", '"False"', False, True),
    ("tags", '"[1, 2]"', [1, 2], True),
    ("at", r'"{\"city\": \"Bern\"}"', {"city": "Bern"}, True),
    # Not certain, allowed, or of no schema.
    ("days", '"five"', "five", False),
    ("days", "true", True, False),
    ("city", '"5"', "5", False),
    ("city", "5", 5, False),
    ("either", '"5"', "5", False),
    ("other", '"5"', "5", False),
    ("at", '{"days": "5"}', {"days": "5"}, False),
]
FORMS = [
    ("hermes", '<tool_call>{{"name": "wait", "arguments": {{"{key}": {value}}}}}</tool_call>'),
    ("hermes", '<tool_call>{{"arguments": {{"{key}": {value}}}, "name": "wait"}}</tool_call>'),
    ("mistral", '[TOOL_CALLS]wait[ARGS]{{"{key}": {value}}}'),
    ("gpt-oss", HARMONY + '{{"{key}": {value}}}<|call|>'),
    ("llama3", '{{"name": "wait", "parameters": {{"{key}": {value}}}}}'),
    ("lfm2", "<|tool_call_start|>[wait({key}={value})]<|tool_call_end|>"),
    ("gemma4", "<|tool_call>call:wait{{{key}:{value}}}<tool_call|>"),
]


@pytest.mark.parametrize(("name", "form"), FORMS)
@pytest.mark.parametrize(("key", "written", "meant", "is_repaired"), FITTED)
def test_a_string_in_the_place_of_another_type_becomes_what_it_says(
    name: str, form: str, key: str, written: str, meant: Any, is_repaired: bool
) -> None:
    for pieces in cuts(form.format(key=key, value=written)):
        _, _, calls, findings = read(pieces, family(name), (Tool("wait", None, SCHEMA),))
        assert calls == [("wait", {key: meant})], pieces
        assert findings == [BEGAN, REPAIRED][: 1 + is_repaired], pieces


DEEP = {
    "properties": {
        "trip": {"$ref": "#/$defs/trip"},
        "perhaps": {"anyOf": [{"$ref": "#/$defs/trip"}, {"type": "null"}]},
        "one_of_two": {"anyOf": [{"$ref": "#/$defs/trip"}, {"type": "object"}]},
        "held_by_all": {"allOf": [{"$ref": "#/$defs/trip"}]},
        "stops": {"type": "array", "items": {"$ref": "#/$defs/trip"}},
        "pair": {"prefixItems": [{"type": "string"}, {"type": "integer"}], "items": {"type": "null"}},
        "by_name": {"type": "object", "additionalProperties": {"type": "integer"}},
        "by_pattern": {
            "type": "object",
            "patternProperties": {"^s": {"type": "string"}},
            "additionalProperties": {"type": "integer"},
        },
    },
    "$defs": {
        "trip": {
            "type": "object",
            "properties": {
                "days": {"type": "integer"},
                "city": {"type": "string"},
                "next": {"$ref": "#/$defs/trip"},
            },
        }
    },
}  # fmt: skip
TRIP = {"days": 5, "city": "5"}
# What is written for an argument in JSON, what is meant, and the number of repairs.
FITTED_WITHIN: list[tuple[str, str, Any, int]] = [
    ("trip", '{"days": "5", "city": "5"}', TRIP, 1),
    ("trip", '{"next": {"next": {"days": "5"}}}', {"next": {"next": {"days": 5}}}, 1),
    ("trip", r'"{\"days\": \"5\", \"city\": \"5\"}"', TRIP, 2),
    ("trip", '{"days": "five", "city": 5}', {"days": "five", "city": 5}, 0),
    ("perhaps", '{"days": "5", "city": "5"}', TRIP, 1),
    ("one_of_two", '{"days": "5"}', {"days": "5"}, 0),
    ("held_by_all", '{"days": "5", "city": "5"}', TRIP, 1),
    ("stops", '[{"days": "5", "city": "5"}, {"days": 6}]', [TRIP, {"days": 6}], 1),
    ("stops", r'["{\"days\": 1}", {"days": "2"}]', [{"days": 1}, {"days": 2}], 2),
    ("pair", '["5", "5", "null"]', ["5", 5, None], 2),
    ("by_name", '{"a": "1", "b": 2}', {"a": 1, "b": 2}, 1),
    ("by_pattern", '{"a": "1"}', {"a": "1"}, 0),
    ("unknown", '{"days": "5"}', {"days": "5"}, 0),
]
IN_TEXT = (
    "qwen3-coder",
    "<tool_call><function=wait><parameter={key}>{value}</parameter></function></tool_call>",
)


@pytest.mark.parametrize(("name", "form"), [*FORMS, IN_TEXT])
@pytest.mark.parametrize(("key", "written", "meant", "repairs"), FITTED_WITHIN)
def test_a_string_deep_in_an_argument_becomes_what_its_schema_makes_certain(
    name: str, form: str, key: str, written: str, meant: Any, repairs: int
) -> None:
    for pieces in cuts(form.format(key=key, value=written)):
        _, _, calls, findings = read(pieces, family(name), (Tool("wait", None, DEEP),))
        assert calls == [("wait", {key: meant})], pieces
        assert findings == [BEGAN, *[REPAIRED] * repairs], pieces


def test_a_tuple_s_items_become_what_they_say() -> None:
    for pieces in cuts('<|tool_call_start|>[wait(pair=("5", "5"))]<|tool_call_end|>'):
        _, _, calls, findings = read(pieces, family("lfm2"), (Tool("wait", None, DEEP),))
        assert calls == [("wait", {"pair": ["5", 5]})], pieces
        assert findings == [BEGAN, REPAIRED]


@pytest.mark.parametrize("kind", ["anyOf", "allOf", "oneOf"])
def test_a_schema_that_refers_to_itself_twice_holds_nothing_up(kind: str) -> None:
    again = {kind: [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/x"}]}
    schema = {"properties": {"a": again}, "$defs": {"x": again}}
    answer = '<tool_call>{"name": "wait", "arguments": {"a": {"b": ["1"]}}}</tool_call>'
    _, _, calls, _ = read([answer], family("hermes"), (Tool("wait", None, schema),))
    assert calls == [("wait", {"a": {"b": ["1"]}})]


@pytest.mark.parametrize("value", ["[" * 80 + "]" * 80, "1" * 500])
def test_a_value_that_is_too_much_to_look_into_stays(value: str) -> None:
    schema = {"properties": {"a": {"type": ["array", "integer"]}}}
    answer = f"<tool_call><function=wait><parameter=a>{value}</parameter></function></tool_call>"
    _, _, calls, _ = read([answer], family("qwen3-coder"), (Tool("wait", None, schema),))
    assert calls == [("wait", {"a": json.loads(value)})]


def test_strings_in_gemma_s_own_quotes_become_what_they_say_too() -> None:
    for pieces in cuts('<|tool_call>call:weather{days:<|"|>3<|"|>}<tool_call|>'):
        _, _, calls, findings = read(pieces, family("gemma4"))
        assert (calls, findings) == ([("weather", {"days": 3})], [BEGAN, REPAIRED])


def test_arguments_within_a_string_become_what_their_schema_says_too() -> None:
    written = r'"{\"days\": \"3\"}"'
    answer = f'<tool_call>{{"name": "weather", "arguments": {written}}}</tool_call>'
    for pieces in cuts(answer):
        _, _, calls, findings = read(pieces, family("hermes"))
        assert (calls, findings) == ([("weather", {"days": 3})], [BEGAN, REPAIRED])


def test_a_string_that_never_ends_is_kept_as_it_was_written() -> None:
    for pieces in cuts('<tool_call>{"name": "weather", "arguments": {"days": "3'):
        assert read(pieces, family("hermes"))[2] == [("weather", '{"days": "3')]


SHORT = ("[calls]", "[call ", "[/call]", "[city]", "[days]", "[/]", "[/calls]")
BLOCKS = {
    "minimax": (
        "<minimax:tool_call>",
        '<invoke name="weather" ',
        "</invoke>",
        '<parameter name="city">',
        '<parameter name="days">',
        "</parameter>",
        "</minimax:tool_call>",
    ),
    "deepseek-v3.2": (
        f"<{DSML}function_calls>",
        f'<{DSML}invoke name="weather" ',
        f"</{DSML}invoke>",
        f'<{DSML}parameter name="city" string="true">',
        f'<{DSML}parameter name="days" string="false">',
        f"</{DSML}parameter>",
        f"</{DSML}function_calls>",
    ),
    "qwen3-coder": (
        "<tool_call>",
        "<function=weather ",
        "</function>",
        "<parameter=city>",
        "<parameter=days>",
        "</parameter>",
        "</tool_call>",
    ),
}
STRAY: list[tuple[str, str, list[Call], list[str]]] = [
    (
        "[calls][call][city]Bern[/][/call]\n And then\n [call][days]3[/][/call][/calls]",
        "And then",
        [("weather", {"city": "Bern"}), ("weather", {"days": 3})],
        [BEGAN, MALFORMED, BEGAN],
    ),
    # Within a call it is said behind it.
    (
        "[calls][call] oops [city]Bern[/] and so [days]3[/] on [/call][/calls]",
        "oops and so on",
        [("weather", BERN)],
        [BEGAN, MALFORMED, MALFORMED, MALFORMED],
    ),
    (
        "[calls][call][city]Bern[/][/call]\nThat was it.[/calls]",
        "That was it.",
        [("weather", {"city": "Bern"})],
        [BEGAN, MALFORMED],
    ),
    # The mark that ends a call is left out.
    (
        "[calls][call][city]Bern[/]\n[call][days]3[/]\n[/calls]",
        "",
        [("weather", {"city": "Bern"}), ("weather", {"days": 3})],
        [BEGAN, BEGAN],
    ),
    ("[calls][call] oops [city]Bern", "oops", [("weather", '{"city": "Bern')], [BEGAN, MALFORMED]),
]


@pytest.mark.parametrize(("written", "text", "calls", "findings"), STRAY)
@pytest.mark.parametrize("name", BLOCKS)
def test_text_between_calls_is_text_and_told(
    name: str, written: str, text: str, calls: list[Call], findings: list[str]
) -> None:
    answer = written.replace("[call]", "[call >")
    for short, mark in zip(SHORT, BLOCKS[name], strict=True):
        answer = answer.replace(short, mark)
    for pieces in cuts(answer):
        found, _, called, noted = read(pieces, family(name))
        assert (" ".join(found.split()), called, noted) == (text, calls, findings), pieces


def test_a_parameter_whose_mark_can_not_be_read_keeps_all_that_was_written() -> None:
    kept = '<parameter name="city" Bern</parameter></invoke>'
    for pieces in cuts(f'<minimax:tool_call><invoke name="wait">{kept}</minimax:tool_call>'):
        text, _, calls, findings = read(pieces, family("minimax"))
        assert (text, calls, findings) == ("", [("wait", kept)], [BEGAN, MALFORMED]), pieces


def test_a_call_without_a_name_that_can_be_read_is_text_mark_and_all() -> None:
    bad = '<invoke name="a b"></invoke></minimax:tool_call>'
    answer = f'<minimax:tool_call><invoke name="wait"></invoke>{bad}'
    for pieces in cuts(answer):
        found = read(pieces, family("minimax"))
        assert found == (bad, "", [("wait", {})], [BEGAN, MALFORMED]), pieces


def test_calls_that_begin_before_others_have_ended_are_read_in_whatever_form() -> None:
    answer = f"<tool_call><function=wait></function><tool_call>{WAIT}</tool_call>"
    for pieces in cuts(answer):
        found = read(pieces, family("qwen3-coder"))
        assert found == ("", "", [("wait", {})] * 2, [BEGAN] * 2), pieces
