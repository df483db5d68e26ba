"""Blocks of content: which may stand where, and what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mlx_manager.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.wire.anthropic.parameters import check_unsupported
from mlx_manager.wire.anthropic.schema import (
    ContentSource,
    DocumentBlock,
    MediaBlock,
    Open,
    RedactedThinkingBlock,
    SearchResultBlock,
    TextBlock,
    TextSource,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)

Kinds = Mapping[str, type[Open]]
TEXT: Kinds = {"text": TextBlock}
READ: Kinds = {**TEXT, "document": DocumentBlock, "search_result": SearchResultBlock}
RESULT: Kinds = {**READ, "image": MediaBlock}
USER: Kinds = {**READ, "tool_result": ToolResultBlock}
ASSISTANT: Kinds = {
    **TEXT,
    "thinking": ThinkingBlock,
    "redacted_thinking": RedactedThinkingBlock,
    "tool_use": ToolUseBlock,
}
# What the tables of parameters call a block, and the source of one.
BLOCKS, SOURCES = "content[].", "content[].source."
Validated = TypeVar("Validated", bound=BaseModel)


def blocks(
    content: Sequence[Mapping[str, Any]], kinds: Kinds, place: str
) -> Iterator[tuple[str, Open]]:
    """Yield each block as what its type says, with its place. Raises InvalidRequest and UnsupportedParameter.

    A document that isn't text is a `MediaBlock`.
    """
    for index, given in enumerate(content):
        at = f"{place}[{index}]"
        kind = given.get("type")
        if not isinstance(kind, str) or kind not in kinds:
            raise UnsupportedParameter(
                f"{at} is of type {kind!r}. This version understands {', '.join(kinds)} there.",
                param=at,
            )
        form = kinds[kind]
        if form is DocumentBlock and not _is_text(given.get("source")):
            form = MediaBlock
        block = validated(form, given, at)
        _check(block, BLOCKS, at)
        yield at, block


def said(block: Open, place: str) -> str | None:
    """Return what a block says to a model: a document and a search's result have a title; None for what isn't text."""
    match block:
        case TextBlock():
            return block.text
        case DocumentBlock():
            document = _said_by_source(block.source, f"{place}.source")
            return "\n".join(filter(None, (block.title, block.context, document)))
        case SearchResultBlock():
            found = texts(block.content, f"{place}.content")
            return "\n".join(filter(None, (block.title, block.source, *found)))
        case _:
            return None


def texts(content: Sequence[Mapping[str, Any]], place: str) -> list[str]:
    """Return what blocks say where all of them must be text."""
    found = blocks(content, TEXT, place)
    return [block.text for _, block in found if isinstance(block, TextBlock)]


def validated(kind: type[Validated], given: Mapping[str, Any], place: str) -> Validated:
    """Return what was given as one of its kind. Raises InvalidRequest with the place of what is wrong."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # A name that is no Unicode is nowhere: then the place is the whole of it.
        param = ".".join(filter(None, (place, *map(str, first["loc"][:1]))))
        raise InvalidRequest(f"{param}: {first['msg']}", param=param) from None


def _is_text(source: object) -> bool:
    """Whether the source of a document is text: plain, or blocks of nothing but text."""
    match source:
        case {"type": "text", "data": data}:
            return isinstance(data, str)
        case {"type": "content", "content": str()}:
            return True
        case {"type": "content", "content": [*inside]}:
            return all(isinstance(one, dict) and one.get("type") == "text" for one in inside)
        case _:
            return False


def _said_by_source(source: Mapping[str, Any], place: str) -> str:
    if source.get("type") == "text":
        plain = validated(TextSource, source, place)
        _check(plain, SOURCES, place)
        return plain.data
    written = validated(ContentSource, source, place)
    _check(written, SOURCES, place)
    if isinstance(written.content, str):
        return written.content
    return "\n".join(texts(written.content, f"{place}.content"))


def _check(block: Open, kind: str, place: str) -> None:
    extra = {name: value for name, value in (block.model_extra or {}).items() if name != "type"}
    check_unsupported(extra, kind=kind, place=f"{place}.")
