"""Bodies as real clients send them, from what is public of each: they must be answered.

`may_refuse` says why a model's family may refuse one; `/v1/responses` is asked only where the server has it.
"""

from __future__ import annotations

from functools import partial

from mlx_manager.conformance.anthropic_checks import check_order
from mlx_manager.conformance.check import Check
from mlx_manager.conformance.claude_code import CLAUDE_CODE
from mlx_manager.conformance.codex import CODEX
from mlx_manager.conformance.recorded import (
    OBJECT_SCHEMA,
    PNG,
    RESPONSES,
    STREAMED,
    SYSTEM,
    USER,
    Recorded,
    function,
)
from mlx_manager.conformance.subject import (
    ANTHROPIC_HEADERS,
    CHAT,
    MESSAGES,
    Broken,
    Event,
    NotApplicable,
    Subject,
    chunks_of,
    error_of,
    expect,
    said,
)
from mlx_manager.conformance.words import ARGUMENTS, CALL, QUESTION, RESULT, USE, WEATHER

FORCED = "this family of models can't be made to call a tool"
HELD = "the calls of this family of models can't be held to anything"
FINAL = {
    "type": "function",
    "function": {
        "name": "final_result",
        "description": "The final response which ends this conversation",
        "parameters": OBJECT_SCHEMA,
    },
}
PLACE_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "Place",
        "description": "A place",
        "strict": True,
        "schema": OBJECT_SCHEMA,
    },
}
STRICT_WEATHER = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
FLAT_WEATHER = {"type": "function", "strict": False, **WEATHER["function"]}
FLAT_CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "get_weather",
    "arguments": '{"city":"Bern"}',
}
FLAT_OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "sunny, 21 degrees"}
PYDANTIC_AI = (
    Recorded(
        "pydantic-ai",
        "tools, streamed",
        CHAT,
        {"messages": [SYSTEM, USER], "tools": [WEATHER], "tool_choice": "auto", **STREAMED},
    ),
    Recorded(
        "pydantic-ai",
        "typed output",
        CHAT,
        {
            "messages": [SYSTEM, USER],
            "tools": [WEATHER, FINAL],
            "tool_choice": "required",
            "stream": False,
        },
        may_refuse=FORCED,
    ),
    Recorded(
        "pydantic-ai",
        "after a tool",
        CHAT,
        {
            "messages": [
                SYSTEM,
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": '{"celsius": 21}'},
            ],
            "tools": [WEATHER],
            "tool_choice": "auto",
            "stream": False,
        },
    ),
    Recorded(
        "pydantic-ai",
        "native output with tools",
        CHAT,
        {
            "messages": [SYSTEM, USER],
            "tools": [WEATHER],
            "tool_choice": "auto",
            "response_format": PLACE_FORMAT,
            "stream": False,
        },
        may_refuse=HELD,
    ),
    Recorded(
        "pydantic-ai",
        "responses",
        RESPONSES,
        {
            "instructions": "Be brief.",
            "input": [USER],
            "tools": [FLAT_WEATHER],
            "tool_choice": "auto",
            "include": ["reasoning.encrypted_content"],
            "stream": False,
            "max_output_tokens": 64,
        },
    ),
    Recorded(
        "pydantic-ai",
        "responses, after a tool",
        RESPONSES,
        {
            "input": [
                USER,
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [],
                    "encrypted_content": "Z2liYmVyaXNo",
                },
                FLAT_CALL,
                FLAT_OUTPUT,
            ],
            "tools": [FLAT_WEATHER],
            "tool_choice": "auto",
            "include": ["reasoning.encrypted_content"],
            "stream": True,
            "max_output_tokens": 64,
        },
    ),
)
LANGCHAIN = (
    Recorded(
        "LangChain",
        "invoke",
        CHAT,
        {"messages": [SYSTEM, USER], "temperature": 0.7, "n": 1, "stream": False},
    ),
    Recorded(
        "LangChain",
        "bind_tools, streamed",
        CHAT,
        {"messages": [USER], "tools": [WEATHER], "parallel_tool_calls": False, **STREAMED},
    ),
    Recorded(
        "LangChain",
        "with_structured_output",
        CHAT,
        {
            "messages": [USER],
            "stream": False,
            "response_format": PLACE_FORMAT,
        },
    ),
    Recorded(
        "LangChain",
        "bind_tools with a response_format",
        CHAT,
        {
            "messages": [USER],
            "stream": False,
            "tools": [STRICT_WEATHER],
            "parallel_tool_calls": False,
            "response_format": PLACE_FORMAT,
        },
        may_refuse=HELD,
    ),
    Recorded(
        "LangChain",
        "ChatAnthropic",
        MESSAGES,
        {
            "messages": [
                USER,
                {"role": "assistant", "content": [USE]},
                {"role": "user", "content": [RESULT]},
            ],
            "max_tokens": 200,
            "tools": [{"name": "get_weather", "description": "", "input_schema": ARGUMENTS}],
        },
        ANTHROPIC_HEADERS,
    ),
    Recorded(
        "LangChain",
        "use_responses_api",
        RESPONSES,
        {
            "input": [
                {"role": "developer", "content": "Be brief.", "type": "message"},
                {**USER, "type": "message"},
                FLAT_CALL,
                FLAT_OUTPUT,
            ],
            "tools": [{**FLAT_WEATHER, "strict": None}],
            "parallel_tool_calls": True,
            "store": False,
            "stream": True,
            "max_output_tokens": 64,
        },
    ),
)
LITELLM = (
    Recorded(
        "LiteLLM",
        "completion",
        CHAT,
        {
            "messages": [USER],
            "temperature": 0.2,
            "top_p": 1,
            "max_tokens": 100,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "user": "me",
        },
    ),
    Recorded(
        "LiteLLM",
        "streamed",
        CHAT,
        {"messages": [USER], "max_completion_tokens": 100, "reasoning_effort": "low", **STREAMED},
    ),
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
LLM = (
    Recorded("llm", "prompt", CHAT, {"messages": [SYSTEM, USER], **STREAMED}),
    Recorded(
        "llm",
        "--schema",
        CHAT,
        {
            "messages": [USER],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "output", "schema": OBJECT_SCHEMA},
            },
            **STREAMED,
        },
    ),
    Recorded(
        "llm",
        "--schema --tool",
        CHAT,
        {
            "messages": [USER],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "output", "schema": OBJECT_SCHEMA},
            },
            "tools": [function("llm_time", "Returns the current time")],
            **STREAMED,
        },
        may_refuse=HELD,
    ),
    Recorded(
        "llm",
        "--tool -o max_tokens 64",
        CHAT,
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            ],
            "tools": [function("llm_time", "Returns the current time")],
            "max_tokens": 64,
            **STREAMED,
        },
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
RECORDED = (*CLAUDE_CODE, *CODEX, *PYDANTIC_AI, *LANGCHAIN, *LITELLM, *LLM, *SDKS)


async def is_answered(recorded: Recorded, subject: Subject) -> None:
    """Send a client's body. Raises Broken unless it is answered, NotApplicable where it may be refused."""
    try:
        if recorded.body.get("stream"):
            await _streamed(recorded, subject)
        else:
            await subject.answer(recorded.path, recorded.body, recorded.headers)
    except Broken:
        await _may_refuse(recorded, subject)
        raise


async def _streamed(recorded: Recorded, subject: Subject) -> None:
    events = await subject.events(recorded.path, recorded.body, recorded.headers)
    if recorded.path == CHAT:
        chunks_of(events)
    elif recorded.path.startswith(MESSAGES):
        check_order(events)
    else:
        check_response(events)


def check_response(events: list[Event]) -> None:
    """Raise Broken unless a response's stream begins and ends as it should, with its events numbered."""
    names = [event.name for event in events]
    expect(names[:1] == ["response.created"], f"the stream begins with {names[:1]}")
    ends = ("response.completed", "response.incomplete")
    expect(names[-1] in ends, f"the stream ends with {names[-1]}")
    numbers = [event.json["sequence_number"] for event in events]
    expect(numbers == list(range(len(events))), "the events are not numbered from 0 on")


async def _may_refuse(recorded: Recorded, subject: Subject) -> None:
    """Raise NotApplicable when the refusal is one that the table explains."""
    response = await subject.post(recorded.path, recorded.body, recorded.headers)
    code = error_of(response).get("code")
    if recorded.path == RESPONSES and response.status_code == 404 and code == "not_found":
        raise NotApplicable("this server has no /v1/responses")
    if recorded.may_refuse and code == "unsupported_parameter":
        raise NotApplicable(f"{recorded.may_refuse}: {said(response)}")


CLIENT_CHECKS = tuple(
    Check("clients", f"{one.client}: {one.what}", partial(is_answered, one)) for one in RECORDED
)
