"""Each family is told from a template like its published ones, and its models go on behind calls and results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_manager.chat.request import Conversation, Message, Tool, ToolCall
from mlx_manager.mlx_server.families.family import FAMILIES
from mlx_manager.mlx_server.generation.model_text import ModelText
from tests.families.chat_templates import CHAT_TEMPLATES, ChatTemplate
from tests.families.test_parser import read
from tests.generation.templates import text_with

LOOK = Tool(
    "look",
    "Looks",
    {"type": "object", "properties": {"at": {"type": "string"}, "by": {"type": "string"}}},
)
CATS, DOGS = {"at": "cats", "by": "day"}, {"at": "dogs"}
MADE = (ToolCall("call_of_another_model_1", "look", CATS), ToolCall("toolu_2", "look", DOGS))
RESULTS = tuple(
    Message("tool", said, tool_call_id=call.id)
    for said, call in zip(("three of them", "none at all"), MADE, strict=True)
)
ASKED = Message("user", "What is there?")
ANSWERED, ASKED_AGAIN = Message("assistant", "Three."), Message("user", "And now?")


@pytest.fixture(params=CHAT_TEMPLATES)
def template(request: pytest.FixtureRequest) -> ChatTemplate:
    found: ChatTemplate = CHAT_TEMPLATES[request.param]
    return found


@pytest.fixture
def text(model_dir: Path, tmp_path: Path, template: ChatTemplate) -> ModelText:
    return text_with(model_dir, tmp_path / "model", template.source, template.tokens)


def rendered(text: ModelText, *messages: Message) -> str:
    return text.render(Conversation(messages, tools=(LOOK,)))


def assert_order(whole: str, *parts: str) -> None:
    at = 0
    for part in parts:
        assert part in whole[at:], (part, whole)
        at = whole.index(part, at) + len(part)


def test_there_is_a_template_for_each_sort_of_every_family() -> None:
    sorts = {(one.name, one.written_form) for one in FAMILIES}
    assert {(one.family, one.form) for one in CHAT_TEMPLATES.values()} == sorts


def test_the_family_is_told_from_the_template(text: ModelText, template: ChatTemplate) -> None:
    assert (text.family.name, text.family.written_form) == (template.family, template.form)


def test_it_is_found_out_where_the_template_says_calls(
    text: ModelText, template: ChatTemplate
) -> None:
    assert text.tellings[True].place == template.place


def test_an_earlier_call_is_shown_as_the_model_writes_it(
    text: ModelText, template: ChatTemplate
) -> None:
    count = 2 if template.takes_several else 1
    asked = rendered(text, ASKED)
    called = rendered(text, ASKED, Message("assistant", "", tool_calls=MADE[:count]))
    assert called.startswith(asked)
    answer = called.removeprefix(asked).partition(template.end)[0]
    said, _, calls, findings = read([answer], text.family, (LOOK,))
    made: list[tuple[str, Any]] = [("look", CATS), ("look", DOGS)]
    assert (said.strip(), calls) == ("", made[:count]), answer
    assert findings == ["tool_call_began"] * count


@pytest.mark.parametrize("beside", ["", "I look."], ids=["alone", "beside text"])
def test_a_call_its_result_and_the_next_turn_reach_the_model(
    text: ModelText, template: ChatTemplate, beside: str
) -> None:
    called = Message("assistant", beside, tool_calls=MADE[:1])
    whole = rendered(text, ASKED, called, RESULTS[0], ANSWERED, ASKED_AGAIN)
    assert_order(whole, "What is there?", "look", "cats", "three of them", "Three.", "And now?")
    if beside and template.keeps_text:
        assert whole.count(beside) == 1
        assert_order(whole, "What is there?", beside, "three of them")


def test_several_results_reach_the_model_in_the_order_of_the_calls(text: ModelText) -> None:
    called = Message("assistant", "", tool_calls=MADE)
    whole = rendered(text, ASKED, called, *RESULTS, ASKED_AGAIN)
    assert_order(whole, "What is there?", "cats", "three of them", "none at all", "And now?")
    assert_order(whole, "cats", "dogs", "none at all")


def test_a_result_is_answered_without_another_question(text: ModelText) -> None:
    asked = rendered(text, ASKED)
    whole = rendered(text, ASKED, Message("assistant", "", tool_calls=MADE[:1]), RESULTS[0])
    assert_order(whole, "cats", "three of them")
    assert len(whole) > len(asked)
