"""Calls as JSON: objects with name and arguments (Hermes, Granite, Llama), or a name and an object (Mistral, Kimi)."""

from __future__ import annotations

import json
import re
from typing import Any

from mlx_manager.mlx_server.families.cursor import Cursor, Reading, Unreadable
from mlx_manager.mlx_server.families.json_text import Json, fitted
from mlx_manager.mlx_server.families.syntax import (
    CallWriter,
    Grammar,
    checked,
    dumped,
    loaded,
    optional,
)

# Where a model may put a call's name and arguments.
NAME_KEYS = ("name", "tool_name")
ARGUMENT_KEYS = ("arguments", "parameters")
# What else a model may put into a call: of no use to anybody, as a call has an id of ours.
IDLE_KEYS = ("id", "type", "index", "call_id", "tool_call_id", "function")
FENCE, FENCE_END = "```json", "```"


def json_calls(cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read one call as a JSON object, or an array of them."""
    yield from cursor.space()
    if (yield from cursor.ahead(1)) == "{":
        yield from _json_call(cursor, writer)
        return
    cursor.take(1)
    yield from cursor.space()
    while (yield from cursor.ahead(1)) == "{":
        yield from _json_call(cursor, writer)
        yield from cursor.space()
        if (yield from cursor.ahead(1)) == ",":
            cursor.take(1)
            yield from cursor.space()
    if (yield from cursor.ahead(1)) != "]":
        raise Unreadable("an array of calls")
    cursor.take(1)


def json_lines(cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read calls as JSON with nothing, or a semicolon, between them (Llama)."""
    yield from json_calls(cursor, writer)
    while True:
        yield from cursor.space()
        if (yield from cursor.ahead(1)) == ";":
            cursor.take(1)
            yield from cursor.space()
        if (yield from cursor.ahead(1)) != "{":
            return
        yield from json_calls(cursor, writer)


def _json_call(cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read `{"name": …, "arguments": {…}}`, its members in any order, and what else stands in it."""
    call = _JsonCall(cursor, writer)
    yield from call.members()
    call.finish()


class _JsonCall:
    """The members of a call: arguments that come behind the name are handed on as they come."""

    def __init__(self, cursor: Cursor, writer: CallWriter) -> None:
        self._cursor = cursor
        self._writer = writer
        self._json = Json(cursor, writer.repaired)
        self._name: str | None = None
        self._held: str | None = None
        self._others = list[tuple[str, str]]()
        self._is_written = False

    def members(self, *, is_nested: bool = False) -> Reading[None]:
        """Read an object's members; those of a `function` in it count as its own."""
        cursor = self._cursor
        cursor.take(1)
        yield from cursor.space()
        while (character := (yield from cursor.ahead(1))) != "}":
            if self._is_written and character not in ("'", '"'):
                # All of the call has come, and the model forgot the brace behind it.
                self._writer.repaired()
                return
            yield from self._member(is_nested)
            yield from cursor.space()
            if (yield from cursor.ahead(1)) == ",":
                cursor.take(1)
                yield from cursor.space()
        cursor.take(1)

    def finish(self) -> None:
        """Hand on what had to wait for the end. Raises Unreadable when there was no name."""
        if self._name is None:
            raise Unreadable("a call with a name")
        if not self._is_written:
            arguments = self._bare_arguments() if self._held is None else self._held_arguments()
            self._writer.start(self._name)
            self._writer.arguments(arguments)
            self._writer.end()
        self._tell_others()
        self._writer.settle()

    def _member(self, is_nested: bool) -> Reading[None]:
        key = yield from self._string()
        yield from self._cursor.space()
        if (yield from self._cursor.ahead(1)) != ":":
            raise Unreadable("a colon")
        self._cursor.take(1)
        yield from self._cursor.space()
        yield from self._value(key, is_nested)

    def _value(self, key: str, is_nested: bool) -> Reading[None]:
        opening = yield from self._cursor.ahead(1)
        if key in NAME_KEYS and self._name is None:
            self._name = checked((yield from self._string()))
        elif key == "function" and opening == "{" and not is_nested:
            yield from self.members(is_nested=True)
        elif key in ARGUMENT_KEYS and self._can_write and opening == "{":
            yield from self._arguments()
        elif key in ARGUMENT_KEYS and self._held is None and not self._is_written:
            self._held = yield from self._json.text()
        else:
            self._others.append((key, (yield from self._json.text())))

    def _arguments(self) -> Reading[None]:
        assert self._name is not None
        self._writer.start(self._name)
        if self._held is not None:
            self._others.append(("arguments", self._held))
        self._tell_others()
        reader = Json(self._cursor, self._writer.repaired, self._writer.schema_of(self._name))
        yield from reader.value(self._writer.arguments)
        self._is_written = True
        self._writer.end()

    @property
    def _can_write(self) -> bool:
        return self._name is not None and not self._is_written

    def _string(self) -> Reading[str]:
        parts = list[str]()
        yield from self._json.string(parts.append)
        text: str = json.loads("".join(parts))
        return text

    def _bare_arguments(self) -> str:
        """Return the arguments of a call without any: its other members, when the tool has arguments of these names."""
        assert self._name is not None
        others = [(key, text) for key, text in self._others if key not in IDLE_KEYS]
        self._others.clear()
        properties = self._writer.schema_of(self._name).get("properties") or {}
        if not all(key in properties for key, _ in others):
            raise Unreadable("a call without members of its own")
        if others:
            self._writer.repaired()
        return self._fitted("{" + ", ".join(f"{dumped(key)}: {text}" for key, text in others) + "}")

    def _held_arguments(self) -> str:
        """Return the arguments that came before the name, or as a string."""
        assert self._held is not None
        return self._fitted(_as_object(self._held))

    def _fitted(self, arguments: str) -> str:
        """Return arguments with the types that the tool's schema gives them."""
        assert self._name is not None
        schema = self._writer.schema_of(self._name)
        return fitted(arguments, self._writer.repaired, schema, schema)

    def _tell_others(self) -> None:
        """Tell of the members that a call has no place for."""
        size = sum(len(text) for key, text in self._others if key not in IDLE_KEYS)
        self._others.clear()
        if size:
            self._writer.left_out(size)


def _as_object(text: str) -> str:
    """Return arguments as the text of an object; a model may write them as a string."""
    if text in ("null", '""'):
        return "{}"
    try:
        found: Any = loaded(text)
        if isinstance(found, str):
            found = loaded(found)
            text = dumped(found)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unreadable("an object of arguments")
    return text


def named(separator: str, end: str | None, *, skips: str | None = None) -> Grammar:
    """Return the grammar of `NAME separator {arguments} end` (Mistral, Kimi, DeepSeek).

    `skips` is a second mark that may stand behind the name, with an id between it and `separator`.
    """
    marks = (separator,) if skips is None else (separator, skips)

    def read(cursor: Cursor, writer: CallWriter) -> Reading[None]:
        yield from cursor.space()
        if (yield from cursor.ahead(1)) in ("[", "{"):
            yield from json_calls(cursor, writer)
            return
        found = list[str]()
        mark = yield from cursor.until(marks, found.append)
        if mark is not None and mark != separator:
            yield from cursor.text_until(separator)
        elif mark is None:
            raise Unreadable(separator)
        yield from _named_arguments("".join(found), cursor, writer)
        if end is not None:
            yield from closing(cursor, writer, end)

    return read


def _named_arguments(name: str, cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read the object of arguments, which may stand in a fence as in a document."""
    name, is_fenced = name.strip(), False
    if name == "function":
        # DeepSeek V3: the word, the separator, the name, a fence.
        name = (yield from cursor.text_until("\n")).strip()
    yield from cursor.space()
    if (yield from cursor.starts_with(FENCE)):
        cursor.take(len(FENCE))
        yield from cursor.space()
        is_fenced = True
    # Kimi numbers its calls in their names: `functions.look:0`.
    yield from object_call(re.sub(r"^functions\.|:\d+$", "", name), cursor, writer)
    if is_fenced:
        yield from optional(cursor, FENCE_END)


def object_call(name: str, cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read the call of `name` whose arguments stand there as a JSON object."""
    if (yield from cursor.ahead(1)) != "{":
        raise Unreadable("an object of arguments")
    writer.start(checked(name))
    yield from Json(cursor, writer.repaired, writer.schema_of(name)).value(writer.arguments)
    writer.end()


def closing(cursor: Cursor, writer: CallWriter, end: str) -> Reading[None]:
    """Read `end`, if it is there, and closing brackets too many before it."""
    yield from cursor.space()
    is_too_many = False
    while (yield from cursor.ahead(1)) in ("}", "]"):
        cursor.take(1)
        yield from cursor.space()
        is_too_many = True
    if (yield from cursor.starts_with(end)):
        cursor.take(len(end))
        if is_too_many:
            writer.repaired()
    elif is_too_many:
        raise Unreadable(end)
