"""Items of a response's input: checked, in the form in which they are stored, and as messages for the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from mlx_manager.chat.events import Phase
from mlx_manager.chat.request import Message, Role, ToolCall
from mlx_manager.errors import InvalidRequest, ItemNotFound, UnsupportedParameter
from mlx_manager.wire.left_out import NAMES, remark
from mlx_manager.wire.openai.responses.namespaces import joined
from mlx_manager.wire.openai.responses.parameters import check_inside
from mlx_manager.wire.openai.responses.schema import FIELDS_OF, REFERENCE, Item, Part
from mlx_manager.wire.signature import Signer

# An item as JSON has it: what a client sends and is sent, and what is stored.
ItemObject = dict[str, Any]

TEXT_PARTS = ("input_text", "output_text", "text")
# The key of arguments that a model wrote as no JSON, when an earlier answer is gone on from.
INVALID = "INVALID_JSON"
# What the tables of parameters call an item, and a part of one.
ITEMS, PARTS = "input[]", "input[].content[]"
OF_ALL_ITEMS = frozenset({"type", "id", "status"})
# An id that was made here, for an item of input or of output, has that of its request in it.
MADE_ID = re.compile(r"(?:msg|rs|fc|fco)_(.+)_(?:in)?[0-9]+")


def input_items(
    items: Sequence[Item],
    request_id: str,
    signer: Signer,
    stored: Mapping[str, ItemObject] | None = None,
) -> list[ItemObject]:
    """Return the items of a body as objects that have all of their fields; ids that are missing are made up.

    Reasoning that came back only as `encrypted_content` is read by `signer`; that of another server says nothing.
    What is referred to is taken from `stored`, by its id. Raises InvalidRequest, ItemNotFound and UnsupportedParameter,
    with the place of what is wrong.
    """
    known, objects = stored or {}, list[ItemObject]()
    for index, item in enumerate(items):
        kind = _checked_kind(item, f"input[{index}]")
        objects.append(
            _referred(item, index, known)
            if kind == REFERENCE
            else _object(item, kind, index, request_id, signer)
        )
    return objects


def referred_ids(items: Sequence[Item]) -> set[str]:
    """Return the ids of the items that a body refers to. Raises InvalidRequest for one that it refers to twice."""
    found = set[str]()
    for index, item in enumerate(items):
        if _kind(item) != REFERENCE:
            continue
        param = f"input[{index}].id"
        item_id = _needed(item.id, param)
        # A few bytes each could stand for a large item over and over.
        if item_id in found:
            raise InvalidRequest(
                f"Duplicate item found with id {item_id!r}. Refer to it once.", param=param
            )
        found.add(item_id)
    return found


def response_of(item_id: str) -> str | None:
    """Return the id of the response that an item belongs to, as its input or its output; None for a client's own id."""
    made = MADE_ID.fullmatch(item_id)
    return None if made is None else f"resp_{made[1]}"


def messages_of(items: Iterable[ItemObject]) -> tuple[Message, ...]:
    """Return the turns that items make up: an assistant's reasoning, text and calls that follow each other are one."""
    messages, turn = list[Message](), _Turn()
    for item in items:
        if turn.takes(item):
            turn.add(item)
            continue
        messages.extend(turn.message())
        turn = _Turn()
        if turn.takes(item):
            turn.add(item)
        else:
            messages.append(_other(item))
    return (*messages, *turn.message())


class _Turn:
    """Gathers one turn of the assistant: reasoning, then text, then calls, any of which may be missing."""

    def __init__(self) -> None:
        self._reasoning: str | None = None
        self._content: str | None = None
        self._phase: Phase | None = None
        self._calls: list[ToolCall] = []

    def takes(self, item: ItemObject) -> bool:
        """Whether an item belongs to this turn; an empty one takes whatever an assistant says."""
        kind = item["type"]
        if kind == "function_call":
            return True
        if kind == "reasoning":
            return self._reasoning is None and self._content is None and not self._calls
        is_said = kind == "message" and item["role"] == "assistant"
        return is_said and self._content is None and not self._calls

    def add(self, item: ItemObject) -> None:
        """Add an item that the turn takes."""
        match item["type"]:
            case "function_call":
                self._calls.append(_tool_call(item))
            case "reasoning":
                self._reasoning = _joined(item.get("content") or item["summary"])
            case _:
                self._content = _joined(item["content"])
                self._phase = item.get("phase")

    def message(self) -> Iterable[Message]:
        """The turn as a message; none when nothing was said."""
        if self._reasoning is None and self._content is None and not self._calls:
            return
        said = Message("assistant", self._content or "", tool_calls=tuple(self._calls))
        yield replace(said, reasoning=self._reasoning or None, phase=self._phase)


def _other(item: ItemObject) -> Message:
    if item["type"] == "function_call_output":
        name, output = item.get("name"), item["output"]
        parts = [] if isinstance(output, str) else output
        return Message(
            "tool",
            output if isinstance(output, str) else "".join(map(_said, parts)),
            name=None if name is None else joined(item.get("namespace"), name),
            tool_call_id=item["call_id"],
            left_out=sum(part["type"] in NAMES for part in parts),
        )
    # Templates know `system`; `developer` is OpenAI's newer word for the same thing.
    role: Role = "user" if item["role"] == "user" else "system"
    return Message(role, _joined(item["content"]))


def _tool_call(item: ItemObject) -> ToolCall:
    name = joined(item.get("namespace"), item["name"])
    return ToolCall(item["call_id"], name, _arguments(item["arguments"] or "{}"))


def _arguments(written: str) -> dict[str, Any]:
    """Return arguments as an object: those of a call that was cut short up to there, unreadable ones as written."""
    try:
        found = from_json(written, allow_partial=True)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {INVALID: written}


def _joined(parts: Iterable[Mapping[str, Any]]) -> str:
    return "".join(part["text"] for part in parts)


def _said(part: Mapping[str, Any]) -> str:
    kind: str = part["type"]
    return remark(kind) if kind in NAMES else part["text"]


def _kind(item: Item) -> str:
    if item.type is not None:
        return item.type
    # Messages and references may leave out their type.
    return REFERENCE if item.id and item.role is None and item.content is None else "message"


def _referred(item: Item, index: int, stored: Mapping[str, ItemObject]) -> ItemObject:
    found = stored.get(item.id or "")
    if found is None:
        raise ItemNotFound(
            f"Item with id {item.id!r} not found. It was never stored, as with 'store' false or an id of your own, was "
            "deleted with its response, or has expired. Send the item itself in its place.",
            param=f"input[{index}].id",
        )
    return found


def _checked_kind(item: Item, place: str) -> str:
    """Return the type of an item. Raises UnsupportedParameter for one that isn't known, or for fields of others."""
    kind = _kind(item)
    if kind not in FIELDS_OF:
        raise UnsupportedParameter(
            f"{place} is of type {kind!r}. This version understands {', '.join(FIELDS_OF)}.",
            param=f"{place}.type",
        )
    others = Item.model_fields.keys() - FIELDS_OF[kind] - OF_ALL_ITEMS
    foreign = {name: getattr(item, name) for name in sorted(item.model_fields_set & others)}
    check_inside({**foreign, **(item.model_extra or {})}, ITEMS, place)
    return kind


def _object(item: Item, kind: str, index: int, request_id: str, signer: Signer) -> ItemObject:
    place, status = f"input[{index}]", item.status or "completed"
    match kind:
        case "message":
            return _message(item, place, item.id or f"msg_{request_id}_in{index}", status)
        case "reasoning":
            item_id = item.id or f"rs_{request_id}_in{index}"
            return _reasoning(item, place, item_id, status, signer)
        case "function_call":
            return _call(item, place, item.id or f"fc_{request_id}_in{index}", status)
        case _:
            return _output(item, place, item.id or f"fco_{request_id}_in{index}", status)


def _message(item: Item, place: str, item_id: str, status: str) -> ItemObject:
    role = _needed(item.role, f"{place}.role")
    content = item.content
    if content is None:
        raise InvalidRequest(f"{place} has no content.", param=f"{place}.content")
    if isinstance(content, str):
        content = [Part(type="text", text=content)]
    _texts(content, f"{place}.content", TEXT_PARTS)
    message = {"id": item_id, "type": "message", "status": status, "role": role}
    parts = [_output_text(part) if role == "assistant" else _input_text(part) for part in content]
    labelled = {} if item.phase is None else {"phase": item.phase}
    return {**message, "content": parts, **labelled}


def _input_text(part: Part) -> dict[str, Any]:
    return {"type": "input_text", "text": part.text}


def _output_text(part: Part) -> dict[str, Any]:
    likely = {} if part.logprobs is None else {"logprobs": part.logprobs}
    said = {"type": "output_text", "text": part.text}
    return {**said, "annotations": part.annotations or [], **likely}


def _reasoning(item: Item, place: str, item_id: str, status: str, signer: Signer) -> ItemObject:
    thoughts = _texts(item.content or [], f"{place}.content", ("reasoning_text",))
    sealed = item.encrypted_content
    if sealed is not None and not thoughts:
        thoughts = list(filter(None, [signer.read("", sealed)]))
    summary = _texts(item.summary or [], f"{place}.summary", ("summary_text",))
    return {
        "id": item_id,
        "type": "reasoning",
        "status": status,
        "summary": [{"type": "summary_text", "text": text} for text in summary],
        "content": [{"type": "reasoning_text", "text": text} for text in thoughts],
        **({} if sealed is None else {"encrypted_content": sealed}),
    }


def _call(item: Item, place: str, item_id: str, status: str) -> ItemObject:
    arguments = item.arguments or "{}"
    if not _is_object(arguments, allow_partial=status == "incomplete"):
        raise InvalidRequest(f"{place}.arguments is not a JSON object.", param=f"{place}.arguments")
    grouped = {} if item.namespace is None else {"namespace": item.namespace}
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": _needed(item.call_id, f"{place}.call_id"),
        "name": _needed(item.name, f"{place}.name"),
        "arguments": arguments,
        **grouped,
    }


def _output(item: Item, place: str, item_id: str, status: str) -> ItemObject:
    output = item.output
    if output is None:
        raise InvalidRequest(f"{place} has no output.", param=f"{place}.output")
    parts = [] if isinstance(output, str) else _result_parts(output, f"{place}.output")
    named = {"name": item.name, "namespace": item.namespace}
    return {
        "id": item_id,
        "type": "function_call_output",
        "status": status,
        "call_id": _needed(item.call_id, f"{place}.call_id"),
        "output": output if isinstance(output, str) else parts,
        **{name: value for name, value in named.items() if value is not None},
    }


def _result_parts(output: list[Part], place: str) -> list[dict[str, Any]]:
    """The parts of a tool's result, as they are stored: of an image or a file, that there was one."""
    parts = list[dict[str, Any]]()
    for position, part in enumerate(output):
        if part.type in NAMES:
            # Nothing more of it is read.
            parts.append({"type": part.type})
        else:
            [text] = _texts([part], place, TEXT_PARTS, position)
            parts.append({"type": "input_text", "text": text})
    return parts


def _needed(value: str | None, param: str) -> str:
    if not value:
        raise InvalidRequest(f"{param} is missing.", param=param)
    return value


def _texts(
    content: str | list[Part], place: str, kinds: tuple[str, ...], first: int = 0
) -> list[str]:
    if isinstance(content, str):
        return [content]
    for position, part in enumerate(content, first):
        if part.type not in kinds or part.text is None:
            raise UnsupportedParameter(
                f"{place}[{position}] is of type {part.type!r}. This version understands text only, as "
                f"{' or '.join(map(repr, kinds))}.",
                param=f"{place}[{position}]",
            )
        check_inside(part.model_extra or {}, PARTS, f"{place}[{position}]")
    return [part.text or "" for part in content]


def _is_object(arguments: str, *, allow_partial: bool) -> bool:
    try:
        found = from_json(arguments, allow_partial=allow_partial)
    except ValueError:
        return False
    return isinstance(found, dict)
