"""Which part of a request each token of its prompt comes from, as far as the template writes it as it was sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_manager.chat.request import Conversation, Message, Tool


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens from `begin` to before `end` come from `field` of the request: `system`, `messages[3].content`."""

    field: str
    begin: int
    end: int


# Characters of the rendered prompt, and whose they are.
Span = tuple[str, int, int]


def parts_of(conversation: Conversation, rendered: str, encoding: Any) -> tuple[Part, ...]:
    """Return the parts in their order; `encoding` is the tokenizer's of the `rendered` conversation.

    What a template changes, or leaves out, is no part.
    """
    spans = list(_messages(conversation.messages, rendered))
    first_turn = next((begin for field, begin, _ in spans if field != "system"), len(rendered))
    if tools := _tools(conversation.tools, rendered[:first_turn]):
        spans = sorted([*spans, tools], key=lambda span: span[1])
    return tuple(Part(field, *_tokens(encoding, begin, end)) for field, begin, end in spans)


def field_at(parts: Sequence[Part], token: int) -> str:
    """Return the field that a token comes from, or would; between two messages it is the role of the second."""
    for part in parts:
        if token < part.begin:
            return part.field.replace(".content", ".role")
        if token < part.end:
            return part.field
    return "template"


def _messages(messages: Sequence[Message], rendered: str) -> Iterator[Span]:
    at = 0
    for index, message in enumerate(messages):
        content = message.content.strip()
        begin = rendered.find(content, at) if content else -1
        if begin < 0:
            continue
        at = begin + len(content)
        yield "system" if message.role == "system" else f"messages[{index}].content", begin, at


def _tools(tools: Sequence[Tool], head: str) -> Span | None:
    """Return from the first tool's name to the end of the last one's description, whatever form they are written in."""
    names = [head.rfind(tool.name) for tool in tools]
    found = [begin for begin in names if begin >= 0]
    if not found:
        return None
    last = max(found)
    return "tools", min(found), max(head.rfind("}") + 1, last + 1)


def _tokens(encoding: Any, begin: int, end: int) -> tuple[int, int]:
    """Return the tokens that begin and end inside of some characters."""
    first, last = _token_at(encoding, begin, end, 1), _token_at(encoding, end - 1, begin - 1, -1)
    if first is None or last is None:
        return 0, 0
    is_inside = encoding.token_to_chars(last)[1] <= end
    return first, max(last + is_inside, first)


def _token_at(encoding: Any, begin: int, end: int, step: int) -> int | None:
    """Return the token of the first of some characters that has one: spaces may have none."""
    tokens = (encoding.char_to_token(at) for at in range(begin, end, step))
    return next((token for token in tokens if token is not None), None)
