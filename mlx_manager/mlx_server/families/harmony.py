"""Harmony, the form of gpt-oss: an answer is messages, each with a header that says for whom it is.

`<|channel|>analysis<|message|>…<|end|>` are thoughts, `final` is the answer, `commentary` says what is done meanwhile,
and what has a recipient is a call: `<|channel|>commentary to=functions.look <|constrain|>json<|message|>{…}<|call|>`.
The recipient may stand before the channel, too. Source:
https://developers.openai.com/cookbook/articles/openai-harmony
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_manager.chat.events import Phase

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}"
FINAL = f"{CHANNEL}final{MESSAGE}"
LAST = (END, CALL, RETURN)
NEXT = (START, CHANNEL)
# What the header of a first message may begin with, behind the `<|start|>assistant` of the prompt.
RECIPIENT_BEGINS = "to="
FUNCTIONS = "functions."
WORDS = ("assistant", "analysis", "commentary", "final", "json", "code")
# Whom a message can be for that is no call.
PEOPLE = ("assistant", "user", "all")
# What the messages of a channel are for those that have asked.
PHASES: Mapping[str, Phase] = {"commentary": "commentary", "final": "final_answer"}
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_MARK = re.compile(r"<\|[a-z]*\|>")


@dataclass(frozen=True, slots=True)
class Header:
    """What a message is: its channel, None where it says none, and the tool that it calls."""

    channel: str | None
    tool: str | None


def header_of(text: str) -> Header:
    """Return what a header says: the text between the end of a message and `<|message|>`."""
    channel, recipient = _CHANNEL.search(text), _RECIPIENT.search(text)
    name = recipient[1] if recipient and recipient[1] not in PEOPLE else None
    return Header(channel[1] if channel else None, name and name.removeprefix(FUNCTIONS))


def is_beginning(text: str) -> bool:
    """Whether a text can be the first part of a header, which says nothing to anybody."""
    words = _MARK.sub(" ", text).split()
    return all(
        word.startswith(RECIPIENT_BEGINS) or any(known.startswith(word) for known in WORDS)
        for word in words
    )
