"""Thoughts end with their budget; the starter model really thinks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai as sdk
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from tokenizers import Tokenizer

from mlx_manager.mlx_server.app import create_app
from tests.conftest import TINY
from tests.server.test_chat_completions import ask, ask_streamed, content_of
from tests.support.running import RunningServer, running, settings_for
from tests.support.spans import Spans
from tools.random_model import Shape, make_random_model

THINKING: dict[str, Any] = {
    "model": "mlx-manager/starter",
    "messages": [{"role": "user", "content": "What is 3 plus 4?"}],
    "max_tokens": 300,
    "reasoning_effort": "high",
}


def limited(budget: int) -> dict[str, Any]:
    return {**THINKING, "extra_body": {"thinking_token_budget": budget}}


def reasoning_of(answer: Any) -> str:
    return getattr(answer.choices[0].message, "reasoning_content", None) or ""


def reasoning_tokens(answer: Any) -> int:
    return int(answer.usage.completion_tokens_details.reasoning_tokens)


@pytest.mark.parametrize("budget", [0, 2, 4])
async def test_a_thought_is_closed_when_its_budget_is_used_up(
    openai: AsyncOpenAI, spans: Spans, budget: int
) -> None:
    free = await ask(openai, **THINKING)
    assert reasoning_tokens(free) > budget + 2
    answer = await ask(openai, **limited(budget))
    assert budget < reasoning_tokens(answer) <= budget + 2
    assert reasoning_of(free).startswith(reasoning_of(answer))
    assert bool(reasoning_of(answer)) == (budget > 0)
    assert content_of(answer)
    assert answer.choices[0].finish_reason == "stop"
    phases = await spans.of_answer(answer.id)
    [parse] = [phase for phase in phases if phase.name == "parse"]
    names = [event.name for event in parse.events]
    assert names == ["reasoning.began", "reasoning.cut", "reasoning.ended"]
    [chat] = [phase for phase in phases if "gen_ai.response.id" in (phase.attributes or {})]
    assert (chat.attributes or {})["mlx.request.thinking_tokens"] == budget


async def test_a_stream_and_every_choice_keep_to_it(openai: AsyncOpenAI) -> None:
    whole = await ask(openai, **limited(3))
    chunks = await ask_streamed(openai, n=2, **limited(3))
    thoughts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            thoughts[choice.index] += getattr(choice.delta, "reasoning_content", None) or ""
    assert thoughts == [reasoning_of(whole)] * 2


async def test_a_budget_that_is_large_enough_changes_nothing(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    free, answer = await ask(openai, **THINKING), await ask(openai, **limited(250))
    assert reasoning_of(answer) == reasoning_of(free) != ""
    assert content_of(answer) == content_of(free)
    [parse] = [one for one in await spans.of_answer(answer.id) if one.name == "parse"]
    assert "reasoning.cut" not in {event.name for event in parse.events}


async def test_a_format_holds_behind_a_thought_that_was_cut(openai: AsyncOpenAI) -> None:
    answer = await ask(
        openai,
        **THINKING,
        extra_body={
            "thinking_token_budget": 3,
            "structured_outputs": {"regex": "[0-9]{3}"},
        },
    )
    assert len(content_of(answer)) == 3
    assert content_of(answer).isdigit()
    assert reasoning_of(answer)


async def test_a_model_that_can_not_think_needs_no_limit(openai: AsyncOpenAI) -> None:
    plain = await ask(openai)
    limited = await ask(openai, extra_body={"thinking_token_budget": 2})
    assert content_of(limited) == content_of(plain)


@pytest.mark.parametrize("value", [-1, "4", True, 1.5])
async def test_what_is_no_number_of_tokens_is_refused(openai: AsyncOpenAI, value: Any) -> None:
    with pytest.raises(sdk.BadRequestError) as met:
        await ask(openai, extra_body={"thinking_token_budget": value})
    assert met.value.param == "thinking_token_budget"


async def test_a_response_keeps_to_it_too(openai: AsyncOpenAI) -> None:
    asked = {
        "model": THINKING["model"],
        "input": THINKING["messages"],
        "reasoning": {"effort": "high"},
    }
    free = await openai.responses.create(**asked)
    cut = await openai.responses.create(**asked, extra_body={"thinking_token_budget": 3})
    assert free.usage is not None
    assert cut.usage is not None
    assert free.usage.output_tokens_details.reasoning_tokens > 5
    assert 3 < cut.usage.output_tokens_details.reasoning_tokens <= 5
    assert cut.output_text


THINKER = "test/thinker"
LEAST_BUDGET = 1024


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a model that thinks for ever, unless somebody ends its thoughts."""
    folder = tmp_path_factory.mktemp("thinker")
    model = make_random_model(folder / THINKER, Shape(vocabulary=520))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_special_tokens(["<think>", "</think>"])
    tokenizer.save(str(model / "tokenizer.json"))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] += (
        "{% if enable_thinking %}<think>\n{% else %}<think></think>{% endif %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    app = create_app(settings_for(tmp_path_factory.mktemp("thinking"), folder))
    with running(app) as server:
        yield server


def message(max_tokens: int, thinking: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": THINKER,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": max_tokens,
        "thinking": thinking,
        "extra_body": {"temperature": 0},
    }


async def test_a_thought_of_a_message_ends_with_its_budget(thinker: RunningServer) -> None:
    """Anthropic's smallest budget is more than the starter model ever thinks."""
    budget = {"type": "enabled", "budget_tokens": LEAST_BUDGET}
    async with AsyncAnthropic(base_url=thinker.url, api_key="none", max_retries=0) as anthropic:
        free = await anthropic.messages.create(**message(1100, {"type": "adaptive"}))
        cut = await anthropic.messages.create(**message(1100, budget))
        async with anthropic.messages.stream(**message(1100, budget)) as stream:
            streamed = await stream.get_final_message()
    [endless] = free.content
    assert (endless.type, free.stop_reason) == ("thinking", "max_tokens")
    thought, text = cut.content
    assert (thought.type, text.type) == ("thinking", "text")
    assert thinking_of(free).startswith(thinking_of(cut))
    assert cut.usage.output_tokens_details is not None
    # The mark that ends them is one of theirs.
    assert cut.usage.output_tokens_details.thinking_tokens == LEAST_BUDGET + 1
    assert [block.model_dump() for block in streamed.content[1:]] == [text.model_dump()]
    assert thinking_of(streamed) == thinking_of(cut)


def thinking_of(answer: Any) -> str:
    return str(answer.content[0].thinking)


async def test_a_limit_where_no_marks_would_hold_it_is_told(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        for path, limit in (
            ("/v1/chat/completions", {"thinking_token_budget": 9}),
            ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ):
            body = {"model": TINY, "messages": THINKING["messages"], "max_tokens": 4, **limit}
            response = await http.post(path, json=body)
            told = response.headers["X-Adjusted-Parameters"].split(", ")
            assert "thinking_token_budget=left_out;by=no_thoughts" in told


async def test_openrouters_and_anthropics_words_hold_in_a_chat(openai: AsyncOpenAI) -> None:
    asked = {name: value for name, value in THINKING.items() if name != "reasoning_effort"}
    free = await ask(openai, **THINKING)
    limits: list[dict[str, Any]] = [
        {"reasoning": {"max_tokens": 3}},
        {"reasoning": {"enabled": True, "max_tokens": 3}},
        {"thinking": {"type": "enabled", "budget_tokens": 3}},
        {"enable_thinking": True, "thinking_token_budget": 3},
    ]
    for words in limits:
        answer = await ask(openai, **asked, extra_body=words)
        assert 3 < reasoning_tokens(answer) <= 5
        assert reasoning_of(free).startswith(reasoning_of(answer))
    off: list[dict[str, Any]] = [
        {"reasoning": {"enabled": False}},
        {"thinking": {"type": "disabled"}},
    ]
    for words in off:
        assert reasoning_tokens(await ask(openai, **asked, extra_body=words)) == 0


async def test_thoughts_that_nobody_wants_to_see_are_thought_and_counted(
    openai: AsyncOpenAI,
) -> None:
    free = await ask(openai, **THINKING)
    hidden = {**THINKING, "extra_body": {"reasoning": {"exclude": True}}}
    answer = await ask(openai, **hidden)
    assert (reasoning_of(answer), content_of(answer)) == ("", content_of(free))
    assert reasoning_tokens(answer) == reasoning_tokens(free) > 0
    for choices in (1, 2):
        chunks = await ask_streamed(openai, n=choices, **hidden)
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
        assert not any(getattr(delta, "reasoning_content", None) for delta in deltas)
        assert any(delta.content for delta in deltas)


@pytest.mark.parametrize(
    ("words", "param"),
    [
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"thinking": {"type": "disabled"}, "reasoning": {"enabled": True}}, "thinking.type"),
    ],
)
async def test_a_wrong_form_of_them_is_refused_by_name(
    openai: AsyncOpenAI, words: dict[str, Any], param: str
) -> None:
    with pytest.raises(sdk.BadRequestError) as met:
        await ask(openai, extra_body=words)
    assert met.value.param == param
