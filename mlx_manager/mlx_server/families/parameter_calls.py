"""Calls whose arguments stand one by one between marks (Qwen3-Coder, GLM, MiniMax, DeepSeek V3.2)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from mlx_manager.mlx_server.families.cursor import Cursor, Reading, Unreadable
from mlx_manager.mlx_server.families.json_calls import closing, json_calls
from mlx_manager.mlx_server.families.json_text import fitted
from mlx_manager.mlx_server.families.syntax import CallWriter, Grammar, checked, dumped
from mlx_manager.mlx_server.families.typed import STRING, member_schema, typed, types_of

ATTRIBUTE = re.compile(r'(\w+)\s*=\s*"([^"]*)"')
ESCAPED = re.compile(r"\\.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Marks:
    """What calls and their parameters stand between, all of them between `begin` and `end`.

    Behind `call` and `parameter` stand `attributes`, up to a `>`.
    """

    begin: str
    end: str
    call: str
    call_end: str
    parameter: str
    parameter_end: str
    attributes: Callable[[str], dict[str, str]]


def tagged(end: str) -> Grammar:
    """Return the grammar of what stands between `<tool_call>` and `end`, in any of the forms that models put there.

    JSON (Hermes, Qwen), an array of it (Granite), `<function=…>` with parameters (Qwen3-Coder), or a name with
    `<arg_key>` and `<arg_value>` (GLM).
    """
    marks = _Marks(
        begin=end.replace("/", ""),
        end=end,
        call="<function=",
        call_end="</function>",
        parameter="<parameter=",
        parameter_end="</parameter>",
        attributes=lambda text: {"name": text.strip()},
    )

    def read(cursor: Cursor, writer: CallWriter) -> Reading[None]:
        yield from cursor.space()
        if (yield from cursor.starts_with(marks.call)):
            yield from _calls(cursor, writer, marks)
        elif (yield from cursor.ahead(1)) in ("{", "["):
            yield from json_calls(cursor, writer)
            yield from closing(cursor, writer, end)
        else:
            yield from _keys_and_values(cursor, writer, end)

    return read


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
    marks = _Marks(
        begin=end.replace("/", ""),
        end=end,
        call=f"<{prefix}invoke ",
        call_end=f"</{prefix}invoke>",
        parameter=f"<{prefix}parameter ",
        parameter_end=f"</{prefix}parameter>",
        attributes=_attributes,
    )

    def read(cursor: Cursor, writer: CallWriter) -> Reading[None]:
        yield from cursor.space()
        if not (yield from cursor.starts_with(marks.call)):
            raise Unreadable("a call")
        yield from _calls(cursor, writer, marks)

    return read


def _calls(cursor: Cursor, writer: CallWriter, marks: _Marks) -> Reading[None]:
    """Read calls up to the end of all of them, or to where others begin; what stands between them is text."""
    between = (marks.call, marks.call_end, marks.begin, marks.end)
    while (mark := (yield from _next(cursor, writer, between))) not in (None, marks.begin):
        cursor.take(len(mark))
        if mark == marks.call:
            yield from _call(cursor, writer, marks)
        elif mark == marks.end:
            return
        else:
            writer.settle()


def _call(cursor: Cursor, writer: CallWriter, marks: _Marks) -> Reading[None]:
    """Read one call up to its end, which is left there."""
    within = (marks.parameter, marks.call, marks.call_end, marks.begin, marks.end)
    name = marks.attributes((yield from cursor.text_until(">")))["name"]
    arguments = _Arguments(writer, checked(name))
    while (yield from _next(cursor, writer, within)) == marks.parameter:
        cursor.take(len(marks.parameter))
        attributes = marks.attributes((yield from cursor.text_until(">")))
        key, is_string = attributes["name"], attributes.get("string") == "true"
        yield from arguments.read(cursor, key, marks.parameter_end, is_string=is_string)
    arguments.end()


def _next(cursor: Cursor, writer: CallWriter, marks: tuple[str, ...]) -> Reading[str | None]:
    """Return which of `marks` comes next, None at the end of the answer; what stands before it is text."""
    yield from cursor.space()
    for mark in marks:
        if (yield from cursor.starts_with(mark)):
            return mark
    # What ends within a mark was only cut.
    if not cursor.is_over:
        writer.malformed()
    return (yield from cursor.before(marks, writer.text))


def _attributes(text: str) -> dict[str, str]:
    """Return what a mark says. Raises Unreadable when anything else stands in it, or there is no name."""
    text = text.replace("'", '"')
    found = dict(ATTRIBUTE.findall(text))
    if "name" not in found or ATTRIBUTE.sub("", text).strip():
        raise Unreadable("a name in quotes")
    return found


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
        schema = member_schema(self._schema, key, self._schema)
        types = types_of(schema, self._schema)
        if types == STRING or (is_string and "string" in types):
            yield from self._string(cursor, close)
            return
        text = yield from _value_text(cursor, close)
        text, is_repaired = typed(dumped(text) if is_string else text, types)
        if is_repaired:
            self._writer.repaired()
        self._writer.arguments(fitted(text, self._writer.repaired, schema, self._schema))

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
