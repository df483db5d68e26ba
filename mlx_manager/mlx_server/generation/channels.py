"""The channel of gpt-oss's in which an earlier message of the assistant's stands.

What it said while it worked was `commentary`; its chat template knows thoughts and `final` messages only, and takes
what stands beside a call for a thought.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from secrets import token_hex

from mlx_manager.chat.request import Conversation, Message
from mlx_manager.mlx_server.families import harmony
from mlx_manager.mlx_server.families.family import Family

COMMENTARY = f"{harmony.CHANNEL}commentary{harmony.MESSAGE}"


def in_channels(
    render: Callable[[Conversation], str], conversation: Conversation, family: Family
) -> str:
    """Return what `render` makes of a conversation, with each message in the channel that its phase says."""
    if not family.in_messages or not any(map(_is_commentary, conversation.messages)):
        return render(conversation)
    # Found again in the text, by which the template's own channel stands; no client can have written it.
    mark = f"\0{token_hex(8)}\0"
    messages = tuple(_marked(message, mark) for message in conversation.messages)
    text = render(replace(conversation, messages=messages))
    named = rf"{re.escape(harmony.CHANNEL)}\w+{re.escape(harmony.MESSAGE)}{mark}"
    return re.sub(named, lambda _: COMMENTARY, text).replace(mark, "")


def _is_commentary(message: Message) -> bool:
    return message.phase == "commentary" and message.role == "assistant" and bool(message.content)


def _marked(message: Message, mark: str) -> Message:
    return replace(message, content=mark + message.content) if _is_commentary(message) else message
