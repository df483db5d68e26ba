"""A conversation in the order in which it stays the same from one request to the next, for the prefix cache.

Agents write today's date near the top of their instructions, or what their provider bills by, and list their tools in
whatever order they found them. From there on nothing of an earlier prompt can be used. A model's setting
`canonical_prompts` has such lines moved to the end of the instructions, and tools sorted by name. Nothing is left out,
and nothing is changed but the order.
"""

from __future__ import annotations

import re
from dataclasses import replace

from mlx_manager.chat.request import Conversation, Message

# A line of its own that says what day or time it is: "Today's date: 2026-11-25", "Current time is 12:30 UTC."
NOW = re.compile(
    r"\W*(?:(?:the|today'?s|current|local|system|as of)\s+)*"
    r"(?:date|time|datetime|timestamp|day|now|today)\b[^.\n]{0,60}?\d[^\n]{0,40}",
    re.IGNORECASE,
)
# Claude Code's line that is another one in each request, where a proxy has turned its instructions into OpenAI's.
BILLING = "x-anthropic-billing-header:"


def canonical(conversation: Conversation) -> tuple[Conversation, tuple[str, ...]]:
    """Return the conversation in its lasting order, and the names of the parts whose order was another one."""
    messages, tools = conversation.messages, conversation.tools
    changed = list[str]()
    if messages and messages[0].role == "system":
        instructions = _with_volatile_last(messages[0])
        if instructions.content != messages[0].content:
            messages = (instructions, *messages[1:])
            changed.append("system")
    sorted_tools = tuple(sorted(tools, key=lambda tool: tool.name))
    if sorted_tools != tools:
        changed.append("tools")
    return replace(conversation, messages=messages, tools=sorted_tools), tuple(changed)


def _with_volatile_last(instructions: Message) -> Message:
    lines = instructions.content.split("\n")
    volatile = [line for line in lines if NOW.fullmatch(line) or line.startswith(BILLING)]
    lasting = [line for line in lines if line not in volatile]
    return replace(instructions, content="\n".join([*lasting, *volatile]))
