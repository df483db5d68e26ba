"""Where a template says nothing of calls, a model's special tokens say whose it is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mlx_manager.mlx_server.families.family import FAMILIES, HERMES, Family, family_of
from tests.families.test_parser import BERN, JSON_CALL, family, read

ALL_TOKENS = frozenset(sign for one in FAMILIES for sign in one.signs)
TOLD_TOOLS = "List of tools: {{ tools }}{{ messages }}"


@pytest.mark.parametrize(
    ("template", "tokens", "name"),
    [
        ("You can use <|tool_list_start|>{{ tools }}<|tool_list_end|>", (), "lfm2"),
        (TOLD_TOOLS, ("<|tool_call_start|>", "<|tool_call_end|>"), "lfm2"),
        ("{{ messages }}", ("<|tool_call_start|>", "<|tool_call_end|>"), "lfm2"),
        (TOLD_TOOLS, ("[TOOL_CALLS]", "[INST]"), "mistral"),
        (TOLD_TOOLS, ("<|tool_call_begin|>", "<|tool_call_argument_begin|>"), "kimi"),
        (TOLD_TOOLS, ("<tool_call>", "<arg_key>"), "glm"),
        (TOLD_TOOLS, ("<｜tool▁sep｜>",), "deepseek"),
        (TOLD_TOOLS, ("｜DSML｜",), "deepseek-v3.2"),
        # The template wins, and a mark that it would write and doesn't is another model's.
        ("<tool_call> {{ tools }}", ALL_TOKENS, "hermes"),
        ("<start_of_turn>", ALL_TOKENS, "gemma3"),
        (TOLD_TOOLS + "{{ messages[0].tool_calls }}", ALL_TOKENS, "hermes"),
        # Some of its tokens are none of its own, and the marks of turns say nothing of calls.
        (TOLD_TOOLS, ("<|tool_call>", "<tool_call>", "<think>"), "hermes"),
        (TOLD_TOOLS, ("<|python_tag|>", "<|start_header_id|>", "<|header_start|>"), "hermes"),
        (TOLD_TOOLS, ("<start_of_turn>", "<|channel|>", "<|call|>"), "hermes"),
    ],
)
def test_where_the_template_says_nothing_of_calls_special_tokens_do(
    template: str, tokens: Sequence[str], name: str
) -> None:
    assert family_of(template, None, tokens).name == name


@pytest.mark.parametrize(
    "one", [one for one in FAMILIES if one.are_tokens], ids=lambda one: one.name
)
def test_every_family_with_tokens_of_its_own_is_told_from_them(one: Family) -> None:
    found = family_of(TOLD_TOOLS, None, one.signs)
    assert (found.name, found.form, found.calls) == (one.name, one.form, one.calls)


def test_a_model_that_is_told_of_tools_in_hermes_s_form_may_write_that_or_its_own() -> None:
    mixed = family_of("{{ messages }}", None, ("<|tool_call_start|>",))
    assert mixed.form == HERMES.form
    own = '<|tool_call_start|>[weather(city="Bern", days=3)]<|tool_call_end|>'
    for answer in (own, f"<tool_call>{JSON_CALL}</tool_call>"):
        assert read([answer], mixed)[2] == [("weather", BERN)]


def test_special_tokens_tell_which_sort_of_a_family_is_meant_that_was_set() -> None:
    newer = family_of("{{ messages }}", "mistral", ("[TOOL_CALLS]", "[ARGS]"))
    older = family_of("{{ messages }}", "mistral", ("[TOOL_CALLS]",))
    assert (newer, older) == (family("mistral"), family_of("", "mistral"))
    assert newer.form != older.form
