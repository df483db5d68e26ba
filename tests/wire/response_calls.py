"""Calls of the Responses API that real clients make, for `sdk_requests` to record what leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from openai import OpenAI
from pydantic import BaseModel, ConfigDict, Field


class Trip(BaseModel):
    """Where somebody goes, and for how long."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Bern", "Rome"]
    days: int = Field(ge=1, le=30)


QUESTION = "What is the weather in Bern?"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a place",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
# Ids that a recorded body has of what a server has stored.
STORED_RESPONSE, STORED_ITEM = "resp_stored", "msg_stored"
TURNS: Any = [
    {"role": "developer", "content": "Be brief."},
    {"type": "item_reference", "id": STORED_ITEM},
    {
        "id": "rs_1",
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "I have to look it up."}],
        "status": "completed",
    },
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "I look it up.", "annotations": []}],
    },
    {
        "id": "fc_1",
        "type": "function_call",
        "call_id": "call_1",
        "name": "get_weather",
        "arguments": '{"city": "Bern"}',
        "status": "completed",
    },
    {
        "type": "function_call_output",
        "call_id": "call_1",
        "output": [{"type": "input_text", "text": "sunny, 21 C"}],
    },
    {"role": "user", "content": [{"type": "input_text", "text": "Thank you. Anything else?"}]},
]


def _said(role: str, text: str) -> Any:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": role, "content": content}


def _streamed(client: OpenAI) -> None:
    with client.responses.stream(
        model="m",
        input="And tomorrow?",
        previous_response_id=STORED_RESPONSE,
        instructions="Be brief.",
        reasoning={"effort": "low", "summary": "auto"},
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        temperature=0,
        max_output_tokens=300,
    ):
        pass


CODEX_TOOLS: Any = [{**WEATHER, "strict": False}, {"type": "web_search"}]


def _codex(client: OpenAI) -> None:
    client.responses.create(
        model="m",
        instructions="You are a coding agent running in the Codex CLI.",
        input=[
            _said("developer", "<permissions instructions>\nAsk.\n</permissions instructions>"),
            _said("user", "<environment_context>\n  <cwd>/tmp</cwd>\n</environment_context>"),
            _said("user", QUESTION),
        ],
        tools=CODEX_TOOLS,
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="019a0000-0000-7000-8000-000000000000",
        text={"verbosity": "medium"},
        extra_body={"client_metadata": {"x-codex-installation-id": "0"}},
    )


RESPONSES: Mapping[str, Callable[[OpenAI], Any]] = {
    "responses-plain": lambda client: client.responses.create(
        model="m",
        instructions="Be brief.",
        input=QUESTION,
        temperature=0,
        top_p=0.9,
        max_output_tokens=200,
        metadata={"topic": "weather"},
        user="ann",
        safety_identifier="user-1",
        prompt_cache_key="key",
        service_tier="auto",
        truncation="disabled",
        background=False,
    ),
    "responses-tools": lambda client: client.responses.create(
        model="m",
        input=[{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}],
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "get_weather"},
        parallel_tool_calls=False,
        max_tool_calls=3,
        temperature=0,
        max_output_tokens=200,
    ),
    "responses-parsed": lambda client: client.responses.parse(
        model="m",
        input="Bern for three days",
        text_format=Trip,
        temperature=0,
        max_output_tokens=200,
        store=False,
    ),
    "responses-turns": lambda client: client.responses.create(
        model="m",
        input=TURNS,
        tools=[WEATHER],
        tool_choice="auto",
        temperature=0,
        max_output_tokens=200,
    ),
    "responses-streamed": _streamed,
    "responses-codex": _codex,
}
