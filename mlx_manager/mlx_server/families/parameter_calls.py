"""Calls whose arguments stand one by one between marks (Qwen3-Coder, GLM, MiniMax, DeepSeek V3.2, Kimi K3)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mlx_manager.mlx_server.families.cursor import Cursor, Reading, Unreadable
from mlx_manager.mlx_server.families.json_calls import closing, json_calls
from mlx_manager.mlx_server.families.json_text import Json, fitted
from mlx_manager.mlx_server.families.syntax import CallWriter, Grammar, checked, dumped
from mlx_manager.mlx_server.families.typed import STRING, member_schema, typed, types_of

ATTRIBUTE = re.compile(r'(\w+)\s*=\s*"([^"]*)"')
ESCAPED = re.compile(r"\\.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Marks:
    """What calls and their parameters stand between, all of them between `begin` and `end`.

    Behind `call` and `parameter` stand `attributes`, up to `head_end`. All arguments of a call may stand as one object
    between `whole` and `whole_end`, where there are such. Line breaks around a string belong to it where it `is_raw`.
    """

    begin: str
    end: str
    call: str
    call_end: str
    parameter: str
    parameter_end: str
    attributes: Callable[[str], dict[str, str]]
    head_end: str = ">"
    whole: str | None = None
    whole_end: str = ""
    is_raw: bool = False


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

    return partial(_block, marks=marks)


def xtml(cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read `call` elements with an `argument` for each argument or `json` for all (Kimi K3), and the end of `tools`."""
    yield from _block(cursor, writer, _XTML)


def _block(cursor: Cursor, writer: CallWriter, marks: _Marks) -> Reading[None]:
    """Read calls that begin right here, up to the end of all of them."""
    yield from cursor.space()
    if not (yield from cursor.starts_with(marks.call)):
        raise Unreadable("a call")
    yield from _calls(cursor, writer, marks)


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
    own = (marks.parameter,) if marks.whole is None else (marks.parameter, marks.whole)
    within = (*own, marks.call, marks.call_end, marks.begin, marks.end)
    name = marks.attributes((yield from cursor.text_until(marks.head_end)))["name"]
    arguments = _Arguments(writer, checked(name), is_raw=marks.is_raw)
    while (mark := (yield from _next(cursor, writer, within))) is not None and mark in own:
        cursor.take(len(mark))
        head = yield from cursor.text_until(marks.head_end)
        if mark == marks.parameter:
            attributes = marks.attributes(head)
            key, is_string = attributes["name"], attributes.get("string") == "true"
            yield from arguments.read(cursor, key, marks.parameter_end, is_string=is_string)
        else:
            yield from arguments.read_whole(cursor, marks.whole_end)
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


def _xtml_attributes(text: str) -> dict[str, str]:
    """Return what a head of XTML says. Raises Unreadable when anything else stands in it, or there is no name."""
    found = {key: _unescaped(value) for key, value in ATTRIBUTE.findall(text)}
    name = found.get("tool", found.get("key"))
    if name is None or ATTRIBUTE.sub("", text).strip():
        raise Unreadable("a name in quotes")
    is_string = found.get("type", "string") == "string"
    return {"name": name, "string": "true" if is_string else "false"}


def _unescaped(value: str) -> str:
    return value.replace("&quot;", '"').replace("&amp;", "&")


_XTML = _Marks(
    begin="<|open|>tools<|sep|>",
    end="<|close|>tools<|sep|>",
    call="<|open|>call ",
    call_end="<|close|>call<|sep|>",
    parameter="<|open|>argument ",
    parameter_end="<|close|>argument<|sep|>",
    attributes=_xtml_attributes,
    head_end="<|sep|>",
    whole="<|open|>json",
    whole_end="<|close|>json<|sep|>",
    is_raw=True,
)


class _Arguments:
    """Writes arguments that come as text, one by one, with the types that the tool's schema gives them."""

    def __init__(self, writer: CallWriter, name: str, *, is_raw: bool = False) -> None:
        self._writer = writer
        self._schema = writer.schema_of(name)
        self._count = 0
        self._is_raw = is_raw
        self._is_whole = False
        writer.start(name)

    def read(
        self, cursor: Cursor, key: str, close: str, *, is_string: bool = False
    ) -> Reading[None]:
        """Read a value up to `close`; a string is handed on as it comes."""
        self._check_more()
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

    def read_whole(self, cursor: Cursor, close: str) -> Reading[None]:
        """Read all arguments as one object of JSON up to `close`."""
        if self._count:
            raise Unreadable("another argument")
        self._check_more()
        yield from cursor.space()
        if (yield from cursor.ahead(1)) != "{":
            raise Unreadable("an object of arguments")
        self._is_whole = True
        reader = Json(cursor, self._writer.repaired, self._schema)
        yield from reader.value(self._writer.arguments)
        yield from closing(cursor, self._writer, close)

    def end(self) -> None:
        """All arguments were read."""
        if not self._is_whole:
            self._writer.arguments("}" if self._count else "{}")
        self._writer.end()

    def _check_more(self) -> None:
        if self._is_whole:
            raise Unreadable("the end of a call")

    def _string(self, cursor: Cursor, close: str) -> Reading[None]:
        """Hand on a text between line breaks that belong to the form and not to the text, unless that is raw."""
        writer, held, space = self._writer, "", "" if self._is_raw else "\n"

        def take(piece: str) -> None:
            nonlocal held
            text = held + piece
            # The last line break may be the one before the end.
            held = space if text.endswith(space) else ""
            writer.arguments(json.dumps(text.removesuffix(space), ensure_ascii=False)[1:-1])

        if (yield from cursor.starts_with(space)):
            cursor.take(len(space))
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
