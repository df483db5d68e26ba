"""Bodies as Claude Code sends them."""

from __future__ import annotations

from typing import Any

from mlx_manager.conformance.recorded import PNG, TEXT, Recorded
from mlx_manager.conformance.subject import ANTHROPIC_HEADERS, COUNT, MESSAGES
from mlx_manager.conformance.words import QUESTION

EPHEMERAL = {"type": "ephemeral"}
CLAUDE_CODE_HEADERS = {
    **ANTHROPIC_HEADERS,
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14",
    "x-app": "cli",
    "user-agent": "claude-cli/2.0.0 (external, cli)",
}


def _tool(name: str, description: str, required: list[str], **properties: Any) -> Any:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return {"name": name, "description": description, "input_schema": schema}


CLAUDE_TOOLS = [
    _tool(
        "Bash",
        "Executes a given bash command",
        ["command"],
        command={"type": "string", "description": "The command to execute"},
        timeout={"type": "number", "description": "Optional timeout in milliseconds"},
    ),
    _tool(
        "Read",
        "Reads a file from the local filesystem",
        ["file_path"],
        file_path=TEXT,
        offset={"type": "number"},
    ),
    _tool(
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

BILLING = "x-anthropic-billing-header: cc_version=2.1.15.f1b; cc_entrypoint=cli; cch=00000;"
TITLE = {
    "type": "object",
    "properties": {"title": {"enum": ["Weather", "Time"], "type": "string"}},
    "required": ["title"],
    "additionalProperties": False,
}
# As many as the context of a small model has room for.
MCP_TOOLS = [
    _tool(f"mcp__server_{number}__look_up", "Looks something up", ["query"], query=TEXT)
    for number in range(8)
]


def _use(number: int, name: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_0{number}", "name": name, "input": given}


def _result(number: int, content: Any, **fields: Any) -> dict[str, Any]:
    return {
        "type": "tool_result",
        "tool_use_id": f"toolu_0{number}",
        "content": content,
        **fields,
    }


def _thought(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": "RXJyb3I="}


PICTURE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": PNG},
}
CLAUDE_WORK = [
    {
        "role": "assistant",
        "content": [
            _thought("A picture may say it."),
            {"type": "text", "text": "I look."},
            _use(1, "Bash", command="ls"),
            _use(2, "Bash", command="file sky.png"),
        ],
    },
    {
        "role": "user",
        "content": [
            _result(1, "sky.png"),
            _result(2, "<tool_use_error>Denied</tool_use_error>", is_error=True),
        ],
    },
    {
        "role": "assistant",
        "content": [_thought("Then as a file."), _use(3, "Read", file_path="/tmp/sky.png")],
    },
    {
        "role": "user",
        "content": [
            _result(3, [PICTURE], cache_control=EPHEMERAL),
            {"type": "text", "text": "<system-reminder>\nGo on.\n</system-reminder>"},
        ],
    },
]

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
    Recorded(
        "Claude Code",
        "many tools",
        f"{MESSAGES}?beta=true",
        {
            "messages": [CLAUDE_TURN],
            "system": [{"type": "text", "text": BILLING}, *CLAUDE_SYSTEM],
            "tools": [*CLAUDE_TOOLS, *MCP_TOOLS],
            "metadata": CLAUDE_USER,
            "max_tokens": 64,
            "thinking": {"type": "adaptive"},
            "output_config": {"effort": "medium"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "stream": True,
        },
        CLAUDE_CODE_HEADERS,
    ),
    Recorded(
        "Claude Code",
        "interleaved thinking, a failed tool, a picture",
        f"{MESSAGES}?beta=true",
        {
            "messages": [CLAUDE_TURN, *CLAUDE_WORK],
            "system": CLAUDE_SYSTEM,
            "tools": CLAUDE_TOOLS,
            "metadata": CLAUDE_USER,
            "max_tokens": 64,
            "thinking": {"type": "adaptive"},
            "stream": True,
        },
        CLAUDE_CODE_HEADERS,
    ),
    Recorded(
        "Claude Code",
        "title",
        f"{MESSAGES}?beta=true",
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
            "system": [
                {"type": "text", "text": BILLING},
                {"type": "text", "text": "Give a title."},
            ],
            "tools": [],
            "metadata": CLAUDE_USER,
            "max_tokens": 200,
            "thinking": {"type": "disabled"},
            "temperature": 1,
            "output_config": {"format": {"type": "json_schema", "schema": TITLE}},
            "stream": True,
        },
        {**CLAUDE_CODE_HEADERS, "anthropic-beta": "structured-outputs-2025-12-15"},
    ),
)
