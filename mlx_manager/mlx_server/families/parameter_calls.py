"""Calls whose arguments stand one by one between marks (Qwen3-Coder, GLM, MiniMax, DeepSeek V3.2)."""

from __future__ import annotations

import json
import re

from mlx_manager.mlx_server.families.cursor import Cursor, Reading, Unreadable
from mlx_manager.mlx_server.families.json_calls import closing, json_calls
from mlx_manager.mlx_server.families.syntax import (
    CallWriter,
    Grammar,
    checked,
    dumped,
    optional,
)
from mlx_manager.mlx_server.families.typed import STRING, argument_types, typed

ATTRIBUTE = re.compile(r'(\w+)\s*=\s*"([^"]*)"')
ESCAPED = re.compile(r"\\.", re.DOTALL)


def tagged(end: str) -> Grammar:
    """Return the grammar of what stands between `<tool_call>` and `end`, in any of the forms that models put there.

    JSON (Hermes, Qwen), an array of it (Granite), `<function=…>` with parameters (Qwen3-Coder), or a name with
    `<arg_key>` and `<arg_value>` (GLM).
    """

    def read(cursor: Cursor, writer: CallWriter) -> Reading[None]:
        yield from cursor.space()
        if (yield from cursor.starts_with("<function=")):
            yield from _functions(cursor, writer)
            yield from optional(cursor, end)
        elif (yield from cursor.ahead(1)) in ("{", "["):
            yield from json_calls(cursor, writer)
            yield from closing(cursor, writer, end)
        else:
            yield from _keys_and_values(cursor, writer, end)

    return read


def _functions(cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read `<function=NAME>` and its `<parameter=KEY>VALUE</parameter>`, once or more."""
    while (yield from cursor.starts_with("<function=")):
        cursor.take(len("<function="))
        arguments = _Arguments(writer, checked((yield from cursor.text_until(">"))))
        yield from cursor.space()
        while (yield from cursor.starts_with("<parameter=")):
            cursor.take(len("<parameter="))
            key = (yield from cursor.text_until(">")).strip()
            yield from arguments.read(cursor, key, "</parameter>")
            yield from cursor.space()
        arguments.end()
        yield from optional(cursor, "</function>")
        yield from cursor.space()


def _keys_and_values(cursor: Cursor, writer: CallWriter, end: str) -> Reading[None]:
    """Read `NAME`, then pairs of `<arg_key>` and `<arg_value>`, and the end."""
    found = list[str]()
    mark = yield from cursor.until(("<arg_key>", end), found.append)
    if mark is None:
        raise Unreadable(end)
    arguments = _Arguments(writer, checked("".join(found)))
    while mark == "<arg_key>":
        key = (yield from cursor.text_until("</arg_key>")).strip()
        if (yield from cursor.text_until("<arg_value>")).strip():
            raise Unreadable("<arg_value>")
        yield from arguments.read(cursor, key, "</arg_value>")
        yield from cursor.space()
        mark = yield from _next_of(cursor, ("<arg_key>", end))
    arguments.end()


def _next_of(cursor: Cursor, marks: tuple[str, ...]) -> Reading[str]:
    """Read the one of `marks` that stands there."""
    for mark in marks:
        if (yield from cursor.starts_with(mark)):
            return cursor.take(len(mark))
    raise Unreadable(marks[-1])


def invocations(end: str, prefix: str = "") -> Grammar:
    """Return the grammar of `<invoke name="…">` with `<parameter name="…">` (MiniMax), up to `end`.

    `prefix` stands before these two words (DeepSeek V3.2).
    """
    invoke, parameter = f"<{prefix}invoke ", f"<{prefix}parameter "

    def read(cursor: Cursor, writer: CallWriter) -> Reading[None]:
        yield from cursor.space()
        if not (yield from cursor.starts_with(invoke)):
            raise Unreadable("a call")
        while (yield from cursor.starts_with(invoke)):
            cursor.take(len(invoke))
            attributes = _attributes((yield from cursor.text_until(">")))
            arguments = _Arguments(writer, checked(attributes.get("name", "")))
            yield from cursor.space()
            while (yield from cursor.starts_with(parameter)):
                cursor.take(len(parameter))
                attributes = _attributes((yield from cursor.text_until(">")))
                is_string = attributes.get("string") == "true"
                key, close = attributes.get("name", ""), f"</{prefix}parameter>"
                yield from arguments.read(cursor, key, close, is_string=is_string)
                yield from cursor.space()
            arguments.end()
            yield from optional(cursor, f"</{prefix}invoke>")
            yield from cursor.space()
        yield from optional(cursor, end)

    return read


def _attributes(text: str) -> dict[str, str]:
    return dict(ATTRIBUTE.findall(text.replace("'", '"')))


class _Arguments:
    """Writes arguments that come as text, one by one, with the types that the tool's schema gives them."""

    def __init__(self, writer: CallWriter, name: str) -> None:
        self._writer = writer
        self._schema = writer.schema_of(name)
        self._count = 0
        writer.start(name)

    def read(
        self, cursor: Cursor, key: str, close: str, *, is_string: bool = False
    ) -> Reading[None]:
        """Read a value up to `close`; a string is handed on as it comes."""
        separator = ", " if self._count else "{"
        self._count += 1
        self._writer.arguments(f"{separator}{dumped(key)}: ")
        types = STRING if is_string else argument_types(self._schema, key)
        if types == STRING:
            yield from self._string(cursor, close)
        else:
            text = yield from _value_text(cursor, close)
            text, is_repaired = typed(text, types)
            if is_repaired:
                self._writer.repaired()
            self._writer.arguments(text)

    def end(self) -> None:
        """All arguments were read."""
        self._writer.arguments("}" if self._count else "{}")
        self._writer.end()

    def _string(self, cursor: Cursor, close: str) -> Reading[None]:
        """Hand on a text between line breaks that belong to the form and not to the text."""
        writer, held = self._writer, ""

        def take(piece: str) -> None:
            nonlocal held
            text = held + piece
            # The last line break may be the one before the end.
            held = "\n" if text.endswith("\n") else ""
            writer.arguments(json.dumps(text.removesuffix("\n"), ensure_ascii=False)[1:-1])

        if (yield from cursor.starts_with("\n")):
            cursor.take(1)
        writer.arguments('"')
        if (yield from cursor.until((close,), take)) is None:
            raise Unreadable(close)
        writer.arguments('"')


def _value_text(cursor: Cursor, close: str) -> Reading[str]:
    """Read up to `close`, but not up to one within a string of JSON, and return what stands before it."""
    text = yield from cursor.text_until(close)
    while text.lstrip()[:1] in ("{", "[") and _is_in_string(text):
        text += close + (yield from cursor.text_until(close))
    return text.strip()


def _is_in_string(text: str) -> bool:
    """Whether a JSON text ends within a string."""
    return ESCAPED.sub("", text).count('"') % 2 == 1
