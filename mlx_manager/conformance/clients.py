"""Bodies as real clients send them: those that agents sent to a recorder, others written after what is public of them.

They must be answered. `may_refuse` says why a model's family may refuse one; `/v1/responses` is asked only where the
server has it. An answer's beginning is enough: each is greedy and short.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mlx_manager.conformance.agents import AGENTS
from mlx_manager.conformance.anthropic_checks import check_order
from mlx_manager.conformance.check import Check
from mlx_manager.conformance.claude_code import CLAUDE_CODE
from mlx_manager.conformance.codex import CODEX
from mlx_manager.conformance.recorded import OBJECT_SCHEMA, PNG, RESPONSES, USER, Recorded
from mlx_manager.conformance.responses_checks import check_response, check_there
from mlx_manager.conformance.subject import (
    ANTHROPIC_HEADERS,
    CHAT,
    MESSAGES,
    UNSUPPORTED,
    Broken,
    Event,
    NotApplicable,
    Subject,
    chunks_of,
    error_of,
    said,
)
from mlx_manager.conformance.words import ARGUMENTS, CALL, QUESTION, WEATHER

LITELLM = (
    Recorded(
        "LiteLLM",
        "a picture from a tool",
        CHAT,
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [CALL], "function_call": None},
                {
                    "role": "tool",
                    "tool_call_id": "call_1",
                    "name": "get_weather",
                    "content": [
                        {"type": "text", "text": "as of noon"},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                    ],
                },
            ],
            "tools": [WEATHER],
            "max_tokens": 64,
            "stream": True,
        },
    ),
    Recorded(
        "LiteLLM",
        "messages",
        MESSAGES,
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
            "system": [
                {
                    "type": "text",
                    "text": "Be brief.",
                    "cache_control": {"type": "ephemeral", "ttl": "1h"},
                }
            ],
            "max_tokens": 64,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "tool_choice": {"type": "auto"},
            "tools": [
                {
                    "name": "get_weather",
                    "input_schema": ARGUMENTS,
                    "type": "custom",
                    "cache_control": {"type": "ephemeral"},
                }
            ],
            "stream": True,
        },
        ANTHROPIC_HEADERS,
    ),
)
SDKS = (
    Recorded(
        "OpenAI SDK",
        "parse",
        CHAT,
        {
            "messages": [USER],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "Place", "strict": True, "schema": OBJECT_SCHEMA},
            },
            "stream": False,
        },
    ),
    Recorded(
        "Anthropic SDK",
        "stream",
        MESSAGES,
        {"messages": [USER], "max_tokens": 100, "stream": True, "system": "Be brief."},
        ANTHROPIC_HEADERS,
    ),
    Recorded(
        "Anthropic SDK",
        "parse",
        f"{MESSAGES}?beta=true",
        {
            "messages": [USER],
            "max_tokens": 300,
            "output_format": {"type": "json_schema", "schema": OBJECT_SCHEMA},
        },
        {**ANTHROPIC_HEADERS, "anthropic-beta": "structured-outputs-2025-11-13"},
    ),
)
RECORDED = (*CLAUDE_CODE, *CODEX, *LITELLM, *SDKS, *AGENTS)
LIMITS = {CHAT: "max_completion_tokens", MESSAGES: "max_tokens", RESPONSES: "max_output_tokens"}
ENOUGH = 48
TOO_LONG = "Shorten it"


async def is_answered(recorded: Recorded, subject: Subject) -> None:
    """Send a client's body. Raises Broken unless it is answered, NotApplicable where it may be refused."""
    sent = shortened(recorded)
    try:
        if sent.get("stream"):
            events = await subject.events(recorded.path, sent, recorded.headers)
            check_stream(recorded.surface, events)
        else:
            await subject.answer(recorded.path, sent, recorded.headers)
    except Broken:
        await _may_refuse(recorded, subject)
        raise


def shortened(recorded: Recorded) -> dict[str, Any]:
    """Return a body without its model, for a greedy and short answer; all else is as it was."""
    limit = LIMITS.get(recorded.surface)
    body = {name: value for name, value in recorded.body.items() if name != "model"}
    return body if limit is None else {**body, "temperature": 0, limit: ENOUGH}


def check_stream(surface: str, events: list[Event]) -> None:
    """Raise Broken unless this is a stream of the endpoint."""
    if surface == CHAT:
        chunks_of(events)
    elif surface == MESSAGES:
        check_order(events)
    else:
        check_response(events)


async def _may_refuse(recorded: Recorded, subject: Subject) -> None:
    """Raise NotApplicable when the refusal is one that the table explains, or the model is too small for the body."""
    response = await subject.post(recorded.path, shortened(recorded), recorded.headers)
    check_there(response)
    error = error_of(response)
    if response.status_code == 400 and TOO_LONG in str(error.get("message")):
        raise NotApplicable(said(response))
    if recorded.may_refuse and error.get("code") == UNSUPPORTED:
        raise NotApplicable(f"{recorded.may_refuse}: {said(response)}")


CLIENT_CHECKS = tuple(
    Check("clients", f"{one.client}: {one.what}", partial(is_answered, one)) for one in RECORDED
)
