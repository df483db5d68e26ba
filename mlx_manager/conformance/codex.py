"""Bodies as the Codex CLI sends them."""

from __future__ import annotations

from typing import Any

from mlx_manager.conformance.recorded import (
    PNG,
    RESPONSES,
    SYSTEM,
    TEXT,
    USER,
    Recorded,
    function,
)
from mlx_manager.conformance.subject import CHAT
from mlx_manager.conformance.words import QUESTION

SHELL = {
    "type": "array",
    "items": {"type": "string"},
    "description": "The command to execute",
}
CODEX_HEADERS = {
    "originator": "codex_cli_rs",
    "user-agent": "codex_cli_rs/0.80.0 (Mac OS 15.1.0; arm64) unknown",
    "session_id": "019a0000-0000-7000-8000-000000000000",
    "accept": "text/event-stream",
}


def _tool(name: str, description: str, required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "description": description,
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        },
    }


CODEX_TOOLS = [
    _tool(
        "shell_command",
        "Runs a shell command and returns its output.",
        ["command"],
        command={"type": "string", "description": "The shell script to execute"},
        workdir=TEXT,
        timeout_ms={"type": "number"},
        sandbox_permissions=TEXT,
        justification=TEXT,
    ),
    _tool(
        "update_plan",
        "Updates the task plan.",
        ["plan"],
        explanation=TEXT,
        plan={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"step": TEXT, "status": TEXT},
                "required": ["step", "status"],
                "additionalProperties": False,
            },
        },
    ),
    _tool("view_image", "Looks at a picture from the local filesystem.", ["path"], path=TEXT),
    # Unasked, unless its config.toml says `web_search = "disabled"`.
    {"type": "web_search", "external_web_access": False},
]


def _said(role: str, text: str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": role, "content": content}


CODEX_BEGIN = [
    _said("developer", "<permissions instructions>\nAsk first.\n</permissions instructions>"),
    _said("user", "<environment_context>\n  <cwd>/tmp</cwd>\n</environment_context>"),
    _said("user", QUESTION),
]
CODEX_WORK: list[dict[str, Any]] = [
    {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "Z2liYmVyaXNo"},
    {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "A picture may say it."}],
        "encrypted_content": None,
    },
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "I look."}],
        "phase": "commentary",
    },
    {
        "type": "function_call",
        "name": "shell_command",
        "arguments": '{"command":"ls"}',
        "call_id": "call_1",
    },
    {
        "type": "function_call",
        "name": "view_image",
        "arguments": '{"path":"sky.png"}',
        "call_id": "call_2",
    },
    {
        "type": "function_call_output",
        "call_id": "call_1",
        "output": "Exit code: 0\nWall time: 0.1 seconds\nOutput:\nsky.png\n",
    },
    {
        "type": "function_call_output",
        "call_id": "call_2",
        "output": [{"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"}],
    },
]
CODEX = (
    Recorded(
        "Codex CLI",
        "chat",
        CHAT,
        {
            "messages": [SYSTEM, USER],
            "stream": True,
            "tools": [
                function("shell", "Runs a shell command", command=SHELL, workdir=TEXT),
                function("update_plan", "Updates the plan", explanation=TEXT),
            ],
        },
    ),
    Recorded(
        "Codex CLI",
        "responses",
        RESPONSES,
        {
            "instructions": "You are a coding agent running in the Codex CLI.",
            "input": CODEX_BEGIN,
            "tools": CODEX_TOOLS,
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": None,
            "store": False,
            "stream": True,
            "include": [],
            "prompt_cache_key": "019a0000-0000-7000-8000-000000000000",
            "client_metadata": {"x-codex-installation-id": "0"},
        },
        CODEX_HEADERS,
    ),
    Recorded(
        "Codex CLI",
        "after tools",
        RESPONSES,
        {
            "instructions": "You are a coding agent running in the Codex CLI.",
            "input": [*CODEX_BEGIN, *CODEX_WORK],
            "tools": CODEX_TOOLS,
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "019a0000-0000-7000-8000-000000000000",
            "client_metadata": {"x-codex-installation-id": "0"},
        },
        CODEX_HEADERS,
    ),
)
