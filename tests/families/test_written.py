"""Calls that are written out in a family's form are read as the same calls by its parser."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_manager.chat.request import Tool, ToolCall
from mlx_manager.mlx_server.families.family import FAMILIES, Family
from mlx_manager.mlx_server.families.written import written
from tests.families.test_parser import Call, cuts, read

SCHEMA = {
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "near": {"type": ["object", "null"]},
        "tags": {"type": "array"},
    }
}
TOOLS = (Tool("weather", None, SCHEMA), Tool("wait"))
BERN = {"city": 'Bern, "the" city\nof {1} é', "days": 3, "exact": True}
NESTED = {"near": {"tags": ["a", None, 1.5, False]}, "tags": [{"b": "c"}, "d"]}
SEVERAL: list[list[Call]] = [
    [("wait", {})],
    [("weather", BERN)],
    [("weather", NESTED)],
    [("weather", {"near": None, "city": ""})],
    [("weather", BERN), ("wait", {}), ("weather", NESTED)],
]


def told(calls: list[Call]) -> list[ToolCall]:
    return [ToolCall(f"c{number}", *call) for number, call in enumerate(calls)]


@pytest.mark.parametrize("one", FAMILIES, ids=lambda one: one.name)
@pytest.mark.parametrize("calls", SEVERAL, ids=lambda calls: ",".join(name for name, _ in calls))
def test_what_is_written_is_read_as_the_same_calls(one: Family, calls: list[Call]) -> None:
    answer = written(told(calls), one.written_form)
    for pieces in ([answer], list(answer)):
        text, thoughts, found, findings = read(pieces, one, TOOLS)
        assert (text.strip(), thoughts, found) == ("", "", calls), answer
        assert findings == ["tool_call_began"] * len(calls), answer


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lfm2", {"no-identifier": 1, "b": [True]}),
        ("gemma4", {"two words": "x", "mark": 'a<|"|>b'}),
        ("functiongemma", {"a:b": 'say "so"', "mark": "a<escape>b"}),
        ("llama3", {"a b": "\n"}),
    ],
)
def test_names_and_strings_that_a_form_has_no_place_for_are_written_as_json(
    name: str, arguments: dict[str, Any]
) -> None:
    one = next(family for family in FAMILIES if family.name == name)
    calls: list[Call] = [("wait", {}), ("wait", arguments)]
    for pieces in cuts(written(told(calls), one.written_form)):
        assert read(pieces, one, TOOLS)[2] == calls, pieces


def test_calls_are_numbered_where_the_form_has_a_number() -> None:
    kimi = next(one for one in FAMILIES if one.name == "kimi")
    answer = written(told([("wait", {}), ("wait", {})]), kimi.written_form)
    assert "functions.wait:0<" in answer
    assert "functions.wait:1<" in answer
    assert "functions.wait:7<" in written(told([("wait", {})]), kimi.written_form, earlier=7)
