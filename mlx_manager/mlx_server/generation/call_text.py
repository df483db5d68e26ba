"""Earlier calls and their results as text, for templates that have no place for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from mlx_manager.chat.request import Message
from mlx_manager.mlx_server.families.family import Family
from mlx_manager.mlx_server.families.written import written

BLANK_LINE = "\n\n"
# Of a result that nobody called for.
NAMELESS = "a function"


def with_calls_as_text(messages: Iterable[Message], family: Family) -> Iterator[Message]:
    """Yield the same with calls in what the assistant said, as a model of `family` would have written them."""
    earlier = 0
    for message in messages:
        yield _with_text(message, family, earlier) if message.tool_calls else message
        earlier += len(message.tool_calls)


def with_all_as_text(messages: Sequence[Message], family: Family) -> Sequence[Message]:
    """Return the same with results, too, as what the user said; neighbours are one then.

    Templates without a place for tools may ask for user and assistant in turns.
    """
    if not any(message.tool_calls or message.role == "tool" for message in messages):
        return messages
    told = list[Message]()
    for message in with_calls_as_text(messages, family):
        one = _as_users(message, family) if message.role == "tool" else message
        if told and one.role == told[-1].role != "system":
            told[-1] = _joined(told[-1], one)
        else:
            told.append(one)
    return told


def _with_text(message: Message, family: Family, earlier: int) -> Message:
    parts = [message.content, written(message.tool_calls, family.written_form, earlier)]
    if family.bare:
        # Where calls have no mark only what an answer begins with is read as one.
        parts.reverse()
    return replace(message, content="\n".join(filter(None, parts)), tool_calls=())


def _as_users(message: Message, family: Family) -> Message:
    text = family.results.format(name=message.name or NAMELESS, result=message.content)
    return Message("user", text)


def _joined(first: Message, second: Message) -> Message:
    thoughts = list(filter(None, (first.reasoning, second.reasoning)))
    content = BLANK_LINE.join(filter(None, (first.content, second.content)))
    return replace(first, content=content, reasoning=BLANK_LINE.join(thoughts) or None)
