"""Bodies as real clients send them, from what is public of each: they must be answered.

Each is written anew after the client's published source or documentation, with made-up content.
`may_refuse` says why a model's family may refuse one; `/v1/responses` is asked only where the server has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mlx_manager.conformance.anthropic_checks import check_order
from mlx_manager.conformance.check import Check
from mlx_manager.conformance.subject import (
    ANTHROPIC_HEADERS,
    CHAT,
    COUNT,
    MESSAGES,
    Broken,
    NotApplicable,
    Subject,
    chunks_of,
    error_of,
    expect,
    said,
)
from mlx_manager.conformance.words import ARGUMENTS, CALL, QUESTION, RESULT, USE, WEATHER

RESPONSES = "/v1/responses"
USER = {"role": "user", "content": QUESTION}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
EPHEMERAL = {"type": "ephemeral"}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
CLAUDE_CODE_HEADERS = {
    **ANTHROPIC_HEADERS,
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14",
    "x-app": "cli",
    "user-agent": "claude-cli/2.0.0 (external, cli)",
}
OBJECT_SCHEMA = {
    "properties": {"city": {"title": "City", "enum": ["Bern", "Oslo"], "type": "string"}},
    "required": ["city"],
    "title": "Place",
    "type": "object",
    "additionalProperties": False,
}
FORCED = "this family of models can't be made to call a tool"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A body of a client, where it goes, and why it may be refused, if it may."""

    client: str
    what: str
    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    may_refuse: str = ""


def _function(name: str, description: str, **parameters: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters, "additionalProperties": False}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": schema},
    }


def _claude_tool(name: str, description: str, required: list[str], **properties: Any) -> Any:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return {"name": name, "description": description, "input_schema": schema}


TEXT = {"type": "string"}
CLAUDE_TOOLS = [
    _claude_tool(
        "Bash",
        "Executes a given bash command",
        ["command"],
        command={"type": "string", "description": "The command to execute"},
        timeout={"type": "number", "description": "Optional timeout in milliseconds"},
    ),
    _claude_tool(
        "Read",
        "Reads a file from the local filesystem",
        ["file_path"],
        file_path=TEXT,
        offset={"type": "number"},
    ),
    _claude_tool(
        "TodoWrite",
        "Keeps a list of what is to be done",
        ["todos"],
        todos={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "content": {"type": "string", "minLength": 1},
                    "status": {"type": "string", "enum": ["pending", "in_progress", "completed"]},
                },
                "required": ["content", "status"],
                "additionalProperties": False,
            },
        },
    ),
]
CLAUDE_SYSTEM = [
    {"type": "text", "text": "You are Claude Code.", "cache_control": EPHEMERAL},
    {"type": "text", "text": "Working directory: /tmp", "cache_control": EPHEMERAL},
]
CLAUDE_TURN = {
    "role": "user",
    "content": [
        {"type": "text", "text": "<system-reminder>\nBe brief.\n</system-reminder>\n"},
        {"type": "text", "text": QUESTION, "cache_control": EPHEMERAL},
    ],
}
CLAUDE_USER = {"user_id": "user_0_account__session_0"}
BASH_USE = {"type": "tool_use", "id": "toolu_01", "name": "Bash", "input": {"command": "ls"}}
BASH_RESULT = {
    "type": "tool_result",
    "tool_use_id": "toolu_01",
    "content": "a.py\nb.py",
    "is_error": False,
    "cache_control": EPHEMERAL,
}

CLAUDE_CODE = (
    Recorded(
        "Claude Code",
        "first turn",
        f"{MESSAGES}?beta=true",
        {
            "messages": [CLAUDE_TURN],
            "system": CLAUDE_SYSTEM,
            "tools": CLAUDE_TOOLS,
            "metadata": CLAUDE_USER,
            "max_tokens": 32000,
            "thinking": {"type": "enabled", "budget_tokens": 31999},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "stream": True,
        },
        CLAUDE_CODE_HEADERS,
    ),
    Recorded(
        "Claude Code",
        "after a tool",
        f"{MESSAGES}?beta=true",
        {
            "messages": [
                CLAUDE_TURN,
                {"role": "assistant", "content": [{"type": "text", "text": "I look."}, BASH_USE]},
                {"role": "user", "content": [BASH_RESULT]},
            ],
            "system": CLAUDE_SYSTEM,
            "tools": CLAUDE_TOOLS,
            "metadata": CLAUDE_USER,
            "max_tokens": 200,
            "temperature": 1,
            "stream": True,
        },
        CLAUDE_CODE_HEADERS,
    ),
    Recorded(
        "Claude Code",
        "quota",
        f"{MESSAGES}?beta=true",
        {
            "max_tokens": 1,
            "messages": [{"role": "user", "content": "quota"}],
            "metadata": CLAUDE_USER,
        },
        CLAUDE_CODE_HEADERS,
    ),
    Recorded(
        "Claude Code",
        "count_tokens",
        f"{COUNT}?beta=true",
        {"messages": [CLAUDE_TURN], "tools": CLAUDE_TOOLS},
        CLAUDE_CODE_HEADERS,
    ),
)
SHELL = {
    "type": "array",
    "items": {"type": "string"},
    "description": "The command to execute",
}
CODEX_SHELL = {
    "type": "function",
    "name": "shell",
    "description": "Runs a shell command and returns its output.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"command": SHELL, "workdir": TEXT, "timeout_ms": {"type": "number"}},
        "required": ["command"],
        "additionalProperties": False,
    },
}
CODEX = (
    Recorded(
        "Codex CLI",
        "responses",
        RESPONSES,
        {
            "instructions": "You are a coding agent running in the Codex CLI.",
            "input": [
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": QUESTION}],
                }
            ],
            "tools": [CODEX_SHELL],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "0",
        },
    ),
    Recorded(
        "Codex CLI",
        "chat",
        CHAT,
        {
            "messages": [SYSTEM, USER],
            "stream": True,
            "tools": [
                _function("shell", "Runs a shell command", command=SHELL, workdir=TEXT),
                _function("update_plan", "Updates the plan", explanation=TEXT),
            ],
        },
    ),
)
FINAL = {
    "type": "function",
    "function": {
        "name": "final_result",
        "description": "The final response which ends this conversation",
        "parameters": OBJECT_SCHEMA,
    },
}
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
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "Place",
                    "description": "A place",
                    "strict": True,
                    "schema": OBJECT_SCHEMA,
                },
            },
        },
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
        names = [event.name for event in events]
        expect(names[-1:] == ["response.completed"], f"the stream ends with {names[-1:]}")


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
