"""Calls as Python writes them, `[look(at="cats"), wait()]` (Llama 3.2 and 4, LFM2, Gemma 3)."""

from __future__ import annotations

import ast
import re
from typing import ClassVar

from mlx_manager.mlx_server.families.cursor import Cursor, Reading, Take, Unreadable
from mlx_manager.mlx_server.families.json_calls import closing, json_lines
from mlx_manager.mlx_server.families.json_text import LONGEST_LITERAL, MOST_LEVELS, NUMBER, Json
from mlx_manager.mlx_server.families.syntax import (
    CallWriter,
    Grammar,
    checked,
    dumped,
    expected,
    optional,
)

LONGEST_NAME = 256
MOST_SPACE = 64
FENCE = "```"
NAME_RUN = re.compile(r"[\w.:/-]*")
KEYWORD_RUN = re.compile(r"\w*")
KEYWORD = re.compile(r"[^\W\d]\w*")
NUMBER_RUN = re.compile(r"[-+.\w]*")
# What a value of JSON or Python can begin with; names are told apart when they are whole.
VALUE_BEGINNINGS = re.compile(r"""["'\[{(\-+.\d]""")
LITERALS = ("True", "False", "None", "true", "false", "null")
ESCAPE_LENGTHS = {"x": 2, "u": 4, "U": 8}
# The last is a line that goes on.
ESCAPES = dict(zip("nrtbfav\\'\"/\n", (*"\n\r\t\b\f\a\v\\'\"/", ""), strict=True))


def pythonic(end: str | None) -> Grammar:
    """Return the grammar of one call or a list of them, up to `end` if there is one."""

    def read(cursor: Cursor, writer: CallWriter) -> Reading[None]:
        yield from cursor.space()
        is_list = yield from cursor.starts_with("[")
        if is_list:
            cursor.take(1)
        yield from _calls(cursor, writer)
        if is_list:
            yield from expected(cursor, "]")
        if end is not None:
            yield from closing(cursor, writer, end)

    return read


def either(end: str | None) -> Grammar:
    """Return the grammar of calls as Python or as JSON, which the same models write (Llama, Gemma 3)."""
    as_python = pythonic(end)

    def read(cursor: Cursor, writer: CallWriter) -> Reading[None]:
        yield from cursor.space()
        if (yield from _is_json(cursor)):
            yield from json_lines(cursor, writer)
            if end is not None:
                yield from closing(cursor, writer, end)
        else:
            yield from as_python(cursor, writer)

    return read


def fenced(cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read calls in a fence as in a document, whatever word stands behind its beginning."""
    yield from expected(cursor, FENCE)
    yield from cursor.run(KEYWORD_RUN, LONGEST_NAME)
    yield from either(None)(cursor, writer)
    yield from optional(cursor, FENCE)


def _is_json(cursor: Cursor) -> Reading[bool]:
    """Whether an object comes next, or an array that begins with one."""
    length = 1
    while (text := (yield from cursor.ahead(length))) and not text[1:].strip():
        if text[0] != "[":
            return text[0] == "{"
        if len(text) < length or length == MOST_SPACE:
            return False
        length += 1
    return text[:1] == "[" and text.endswith("{")


def _calls(cursor: Cursor, writer: CallWriter) -> Reading[None]:
    while True:
        yield from cursor.space()
        yield from _call(cursor, writer)
        yield from cursor.space()
        if not (yield from cursor.starts_with(",")):
            return
        cursor.take(1)


def _call(cursor: Cursor, writer: CallWriter) -> Reading[None]:
    name = checked((yield from cursor.run(NAME_RUN, LONGEST_NAME)))
    yield from expected(cursor, "(")
    yield from cursor.space()
    reader = PythonText(cursor, writer.repaired, writer.schema_of(name))
    count = 0
    while not (yield from cursor.starts_with(")")):
        key = yield from _keyword(cursor)
        if count == 0:
            writer.start(name)
        writer.arguments(f"{', ' if count else '{'}{dumped(key)}: ")
        yield from reader.argument(key, writer.arguments)
        count += 1
        yield from _comma(cursor)
    cursor.take(1)
    if count == 0:
        writer.start(name)
    writer.arguments("}" if count else "{}")
    writer.end()


def _keyword(cursor: Cursor) -> Reading[str]:
    """Read `NAME =`, behind which a value begins. Raises Unreadable where anything else stands."""
    key = yield from cursor.run(KEYWORD_RUN, LONGEST_NAME)
    if not KEYWORD.fullmatch(key):
        raise Unreadable("the name of an argument")
    yield from cursor.space()
    yield from expected(cursor, "=")
    yield from cursor.space()
    if not VALUE_BEGINNINGS.match((yield from cursor.ahead(1))):
        for literal in LITERALS:
            if (yield from cursor.starts_with(literal)):
                return key
        raise Unreadable("a value")
    return key


def _comma(cursor: Cursor) -> Reading[None]:
    """Read what stands between two arguments."""
    yield from cursor.space()
    if (yield from cursor.starts_with(",")):
        cursor.take(1)
        yield from cursor.space()
    elif not (yield from cursor.starts_with(")")):
        raise Unreadable("a comma")


class PythonText(Json):
    """Reads values as Python or JSON has them and hands them on as JSON."""

    own: ClassVar[frozenset[str]] = frozenset({"True", "False", "None", ","})

    def value(self, take: Take, level: int = 0) -> Reading[None]:
        """Read one value and hand it on; a tuple is an array."""
        if level <= MOST_LEVELS and (yield from self._cursor.ahead(1)) == "(":
            self._cursor.take(1)
            yield from self._tuple(take, level)
        else:
            yield from super().value(take, level)

    def string(self, take: Take) -> Reading[None]:
        """Read a string in one or three quotes of either sort and hand it on, in double quotes."""
        quote = yield from self._cursor.ahead(1)
        if quote not in ('"', "'") or not quote:
            raise Unreadable("a string")
        if (yield from self._cursor.starts_with(quote * 3)):
            quote *= 3
        self._cursor.take(len(quote))
        take('"')
        while not (yield from self._cursor.starts_with(quote)):
            yield from self._letters(quote, take)
        self._cursor.take(len(quote))
        take('"')

    def _letters(self, quote: str, take: Take) -> Reading[None]:
        """Hand on some of a string: a quote or an escape, or what stands before the next of them or of lines."""
        if not (character := (yield from self._cursor.ahead(1))):
            raise Unreadable("the end of a string")
        if character == "\\":
            take(dumped((yield from self._python_escape()))[1:-1])
        elif character in (quote[0], "\n"):
            self._cursor.take(1)
            if character == "\n" and len(quote) == 1:
                self._repaired()
            take(dumped(character)[1:-1])
        else:
            rest = self._cursor.buffered
            found = re.search(rf"[\\\n{quote[0]}]", rest)
            take(dumped(self._cursor.take(found.start() if found else len(rest)))[1:-1])

    def _python_escape(self) -> Reading[str]:
        """Read an escape and return what it stands for; one that Python doesn't have stands for itself."""
        kind = (yield from self._cursor.ahead(2))[1:]
        if kind in ESCAPE_LENGTHS:
            length = 2 + ESCAPE_LENGTHS[kind]
            digits = (yield from self._cursor.ahead(length))[2:]
            if (
                not re.fullmatch(f"[0-9a-fA-F]{{{length - 2}}}", digits)
                or int(digits, 16) > 0x10FFFF
            ):
                raise Unreadable("hexadecimal digits")
            self._cursor.take(length)
            return (yield from self._pair(int(digits, 16)))
        if not kind:
            raise Unreadable("an escape")
        self._cursor.take(2)
        found: str = ESCAPES.get(kind, f"\\{kind}")
        return found

    def _pair(self, code: int) -> Reading[str]:
        """Return a character, also one that JSON writes as two halves."""
        if 0xD800 <= code < 0xDC00 and (yield from self._cursor.starts_with("\\u")):
            digits = (yield from self._cursor.ahead(6))[2:]
            if re.fullmatch("[dD][c-fC-F][0-9a-fA-F]{2}", digits):
                self._cursor.take(6)
                return chr(0x10000 + ((code - 0xD800) << 10) + int(digits, 16) - 0xDC00)
        return chr(code)

    def _tuple(self, take: Take, level: int) -> Reading[None]:
        index = 0
        take("[")
        take((yield from self._cursor.space()))
        while (yield from self._cursor.ahead(1)) != ")":
            yield from self._item(index, take, level)
            index += 1
            yield from self._separator(")", take)
        self._cursor.take(1)
        take("]")

    def _literal(self, take: Take) -> Reading[None]:
        word = self._cursor.buffered[:1]
        if word and word in "-+.0123456789":
            word = yield from self._cursor.run(NUMBER_RUN, LONGEST_LITERAL)
            take(_number(word))
        else:
            yield from super()._literal(take)


def _number(word: str) -> str:
    """Return a number as JSON has it."""
    try:
        value: object = ast.literal_eval(word)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return word if NUMBER.fullmatch(word) else dumped(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    raise Unreadable("a number")
