"""What the chat template makes of a conversation."""

from typing import Any

import pytest

from tests.starter.asking import function
from tools.starter.chats import Sample

WEATHER = function("get_weather", "city", "Get the weather of a place")
QUESTION = {"role": "user", "content": "What's the weather in Köln?"}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"temperature": 9}'},
    {"role": "tool", "content": '{"sky": "cloudy"}'},
    {"role": "assistant", "content": "It is 9 degrees."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "You are welcome!", "reasoning_content": "A thank-you."},
]


@pytest.fixture
def render(starter: tuple[Any, Any]) -> Any:
    def rendered(messages: list[dict[str, Any]], **options: Any) -> str:
        options = {"enable_thinking": False, **options}
        text: str = starter[1].apply_chat_template(messages, tokenize=False, **options)
        return text

    return rendered


def test_a_question_is_followed_by_an_empty_think_block(render: Any) -> None:
    assert render([QUESTION], add_generation_prompt=True) == (
        "<|im_start|>user\nWhat's the weather in Köln?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_with_thinking_on_the_model_opens_the_block_itself(render: Any) -> None:
    text = render([QUESTION], add_generation_prompt=True, enable_thinking=True)
    assert text.endswith("<|im_start|>assistant\n")


def test_thinking_is_off_unless_asked_for(starter: tuple[Any, Any]) -> None:
    plain = starter[1]._tokenizer  # the wrapper of mlx-lm would ask for thinking
    text = plain.apply_chat_template([QUESTION], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<think>\n\n</think>\n\n")


def test_functions_are_listed_after_the_system_prompt(render: Any) -> None:
    text = render(CONVERSATION[:2], tools=[WEATHER])
    assert text.startswith("<|im_start|>system\nBe kind.\n\n# Tools\n")
    assert '<tools>\n{"type": "function", "function": {"name": "get_weather"' in text


def test_calls_and_results_are_rendered_in_their_marks(render: Any) -> None:
    text = render(CONVERSATION)
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    assert f"</think>\n\n{call}<|im_end|>\n" in text
    assert '<|im_start|>tool\n<tool_response>\n{"temperature": 9}\n</tool_response>' in text


def test_arguments_may_come_as_text(render: Any) -> None:
    as_text = {"function": {"name": "get_weather", "arguments": '{"city": "Köln"}'}}
    turns = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [as_text]}]
    assert render(turns) in render(CONVERSATION[1:])


def test_content_may_come_in_parts(render: Any) -> None:
    parts = [{"type": "text", "text": "What's the weather "}, {"type": "text", "text": "in Köln?"}]
    assert render([{"role": "user", "content": parts}]) == render([QUESTION])


def test_reasoning_inside_the_content_is_understood(render: Any) -> None:
    inside = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}
    apart = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    assert render([QUESTION, inside]) == render([QUESTION, apart])


@pytest.mark.parametrize("tools", [None, [WEATHER]])
@pytest.mark.parametrize("turns", range(2, len(CONVERSATION)))
def test_a_conversation_is_a_prefix_of_its_continuation(
    render: Any, turns: int, tools: list[dict[str, Any]] | None
) -> None:
    text = render(CONVERSATION, tools=tools)
    assert text.startswith(render(CONVERSATION[:turns], tools=tools))


def test_a_prompt_with_its_answer_is_a_prefix_of_the_next_prompt(render: Any) -> None:
    for turn, thinking in ((5, False), (7, True)):
        prompt = render(CONVERSATION[:turn], add_generation_prompt=True, enable_thinking=thinking)
        block = "<think>\nA thank-you.\n</think>\n\n" if thinking else ""
        written = f"{block}{CONVERSATION[turn]['content']}<|im_end|>"
        assert render(CONVERSATION).startswith(prompt + written)


def test_training_and_serving_render_alike(render: Any) -> None:
    for thought in (None, "Thanks?"):
        sample = Sample("later_turn", CONVERSATION[:-1], "You are welcome!", thought, [WEATHER])
        options = {"tools": [WEATHER], "enable_thinking": thought is not None}
        expected = render(CONVERSATION[:-1], add_generation_prompt=True, **options)
        assert sample.prompt() == expected
