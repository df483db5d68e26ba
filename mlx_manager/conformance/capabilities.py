"""What a model can do, which is its own affair: a `no` here is no failure of the server."""

from __future__ import annotations

from typing import Any

from mlx_manager.conformance.check import Capability
from mlx_manager.conformance.subject import (
    CHAT,
    EMBEDDINGS,
    NotApplicable,
    Subject,
    asking,
    error_of,
    expect,
    only_choice,
    said,
    text_of,
    unless_unsupported,
)
from mlx_manager.conformance.words import QUESTION, WEATHER

BOTH = "What is the weather in Bern and in Oslo?"
ENOUGH = 400


async def _calls(subject: Subject, question: str, **fields: Any) -> list[dict[str, Any]]:
    answer = await subject.chat(question, tools=[WEATHER], max_tokens=ENOUGH, **fields)
    return list(only_choice(answer)["message"].get("tool_calls") or ())


async def calls_tools(subject: Subject) -> bool:
    """Whether it calls a tool that would answer the question, of its own accord."""
    names = [call["function"]["name"] for call in await _calls(subject, QUESTION)]
    return "get_weather" in names


async def calls_several(subject: Subject) -> bool:
    """Whether it makes several calls at once, where two are wanted."""
    return len(await _calls(subject, BOTH)) > 1


async def forced_calls(subject: Subject) -> bool:
    """Whether the server can make it call, in the form in which its family writes calls."""
    asked = asking(QUESTION, tools=[WEATHER], tool_choice="required", max_tokens=ENOUGH)
    try:
        unless_unsupported(await subject.post(CHAT, asked))
    except NotApplicable:
        return False
    return True


async def thinks(subject: Subject) -> bool:
    """Whether it thinks before it answers, when it is asked to."""
    return await _has_thoughts(subject, "high")


async def thinks_less(subject: Subject) -> bool:
    """Whether its thinking can be switched off. Raises NotApplicable where it never thinks."""
    if not await _has_thoughts(subject, "high"):
        raise NotApplicable("it does not think")
    return not await _has_thoughts(subject, "none")


async def _has_thoughts(subject: Subject, effort: str) -> bool:
    answer = await subject.chat(QUESTION, reasoning_effort=effort, max_tokens=ENOUGH)
    return bool(only_choice(answer)["message"].get("reasoning_content"))


async def ends_answers(subject: Subject) -> bool:
    """Whether it ends a short answer by itself."""
    answer = await subject.chat("Say hello.", max_tokens=ENOUGH)
    return bool(only_choice(answer)["finish_reason"] == "stop" and text_of(answer))


async def makes_vectors(subject: Subject) -> bool:
    """Whether it makes embeddings."""
    response = await subject.post(EMBEDDINGS, {"input": "one"})
    if error_of(response).get("code") in ("wrong_model_kind", "not_found"):
        return False
    expect(response.status_code == 200, said(response))
    return True


TEXT_CAPABILITIES = (
    Capability("model", "calls tools", calls_tools),
    Capability("model", "parallel calls", calls_several),
    Capability("model", "forced calls", forced_calls),
    Capability("model", "thinks", thinks),
    Capability("model", "thinking can be off", thinks_less),
    Capability("model", "ends its answers", ends_answers),
)
COMMON_CAPABILITIES = (Capability("model", "embeddings", makes_vectors),)
