"""How models write the calls of tools: one grammar for each syntax, which begins behind the mark that opens one.

A grammar reads from a `Cursor` and tells a `CallWriter` what it finds. It raises Unreadable when what stands there is
no call; the text is then given to the client as text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mlx_manager.mlx_server.families.cursor import Cursor, Reading, Unreadable
from mlx_manager.mlx_server.families.json_text import Json

NAME = re.compile(r"[\w.:/-]{1,256}")
# An escape in JSON or Python can make half a pair, which has no encoding in UTF-8.
HALF_A_PAIR = re.compile("[\ud800-\udfff]")
# Where a model may put a call's name and arguments.
NAME_KEYS = ("name", "tool_name")
ARGUMENT_KEYS = ("arguments", "parameters")


class CallWriter(Protocol):
    """Takes the calls of one answer."""

    def start(self, name: str) -> None:
        """A call begins."""
        ...

    def arguments(self, text: str) -> None:
        """Some more of the JSON text of its arguments."""
        ...

    def repaired(self) -> None:
        """Something in the call was not as it should be, and what was meant is certain."""
        ...

    def schema_of(self, name: str) -> Mapping[str, Any]:
        """The JSON schema of a tool's arguments; empty when there is none."""
        ...


Grammar = Callable[[Cursor, CallWriter], Reading[None]]


def tagged(end: str) -> Grammar:
    """Return the grammar of what stands between `<tool_call>` and `end`, in any of the forms that models put there.

    JSON (Hermes, Qwen), an array of it (Granite), `<function=…>` with parameters (Qwen3-Coder), or a name with
    `<arg_key>` and `<arg_value>` (GLM).
    """

    def read(cursor: Cursor, writer: CallWriter) -> Reading[None]:
        yield from cursor.space()
        if (yield from cursor.starts_with("<function=")):
            yield from _functions(cursor, writer)
        elif (yield from cursor.ahead(1)) in ("{", "["):
            yield from json_calls(cursor, writer)
        else:
            yield from _keys_and_values(cursor, writer, end)
            return
        yield from _optional(cursor, end)

    return read


def json_calls(cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read one call as a JSON object, or an array of them."""
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


def _json_call(cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read `{"name": …, "arguments": {…}}`, its members in any order, and what else stands in it."""
    parts = _JsonCall(cursor, writer)
    yield from parts.members()
    parts.finish()


class _JsonCall:
    """The members of a call: arguments that come behind the name are handed on as they come."""

    def __init__(self, cursor: Cursor, writer: CallWriter) -> None:
        self._cursor = cursor
        self._writer = writer
        self._json = Json(cursor)
        self._name: str | None = None
        self._held: str | None = None
        self._is_written = False

    def members(self, *, is_nested: bool = False) -> Reading[None]:
        """Read an object's members; those of a `function` in it count as its own."""
        cursor = self._cursor
        cursor.take(1)
        yield from cursor.space()
        while (yield from cursor.ahead(1)) != "}":
            key = yield from self._string()
            yield from cursor.space()
            if (yield from cursor.ahead(1)) != ":":
                raise Unreadable("a colon")
            cursor.take(1)
            yield from cursor.space()
            yield from self._member(key, is_nested)
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
            arguments = _as_object(self._held)
            self._writer.start(self._name)
            self._writer.arguments(arguments)
        for _ in range(self._json.repairs):
            self._writer.repaired()

    def _member(self, key: str, is_nested: bool) -> Reading[None]:
        opening = yield from self._cursor.ahead(1)
        if key in NAME_KEYS and self._name is None:
            self._name = _checked((yield from self._string()))
        elif key == "function" and opening == "{" and not is_nested:
            yield from self.members(is_nested=True)
        elif key in ARGUMENT_KEYS and self._can_write and opening == "{":
            self._is_written = True
            assert self._name is not None
            self._writer.start(self._name)
            yield from self._json.value(self._writer.arguments)
        elif key in ARGUMENT_KEYS:
            self._held = yield from self._json.text()
        else:
            # An id or a type of the model's own making; the call has one of ours.
            yield from self._json.text()

    @property
    def _can_write(self) -> bool:
        return self._name is not None and not self._is_written

    def _string(self) -> Reading[str]:
        parts = list[str]()
        yield from self._json.string(parts.append)
        text: str = json.loads("".join(parts))
        return text


def _as_object(text: str | None) -> str:
    """Return arguments as the text of an object; a model may write them as a string, or leave them out."""
    if text is None or text in ("null", '""'):
        return "{}"
    try:
        found = _loaded(text)
        if isinstance(found, str):
            found = _loaded(found)
            text = _dumped(found)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unreadable("an object of arguments")
    return text


def _loaded(text: str) -> Any:
    """Return a value of JSON, strictly. Raises ValueError also for one that is too deep to be read."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("too many levels") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _dumped(value: Any) -> str:
    """Return a value's JSON text. Raises ValueError for numbers that JSON has none for, TypeError for other values."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return json.dumps(value) if HALF_A_PAIR.search(text) else text


def _functions(cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read `<function=NAME>` and its `<parameter=KEY>VALUE</parameter>`, once or more."""
    while (yield from cursor.starts_with("<function=")):
        cursor.take(len("<function="))
        name = _checked((yield from cursor.text_until(">")))
        values = _Values(writer, name)
        yield from cursor.space()
        while (yield from cursor.starts_with("<parameter=")):
            cursor.take(len("<parameter="))
            key = (yield from cursor.text_until(">")).strip()
            yield from values.read(cursor, key, ("</parameter>",))
            yield from cursor.space()
        values.end()
        yield from _optional(cursor, "</function>")
        yield from cursor.space()


def _keys_and_values(cursor: Cursor, writer: CallWriter, end: str) -> Reading[None]:
    """Read `NAME`, then pairs of `<arg_key>` and `<arg_value>`, and the end."""
    found = list[str]()
    mark = yield from cursor.until(("<arg_key>", end), found.append)
    if mark is None:
        raise Unreadable(end)
    values = _Values(writer, _checked("".join(found)))
    while mark == "<arg_key>":
        key = (yield from cursor.text_until("</arg_key>")).strip()
        yield from cursor.text_until("<arg_value>")
        yield from values.read(cursor, key, ("</arg_value>",))
        mark = yield from cursor.until(("<arg_key>", end), lambda _between: None)
    values.end()


def invocations(end: str) -> Grammar:
    """Return the grammar of `<invoke name="…">` with `<parameter name="…">` (MiniMax), up to `end`."""

    def read(cursor: Cursor, writer: CallWriter) -> Reading[None]:
        yield from cursor.space()
        if not (yield from cursor.starts_with("<invoke name=")):
            raise Unreadable("a call")
        while (yield from cursor.starts_with("<invoke name=")):
            cursor.take(len("<invoke name="))
            values = _Values(writer, _checked((yield from cursor.text_until(">")).strip("\"' ")))
            yield from cursor.space()
            while (yield from cursor.starts_with("<parameter name=")):
                cursor.take(len("<parameter name="))
                key = (yield from cursor.text_until(">")).strip("\"' ")
                yield from values.read(cursor, key, ("</parameter>",))
                yield from cursor.space()
            values.end()
            yield from _optional(cursor, "</invoke>")
            yield from cursor.space()
        yield from _optional(cursor, end)

    return read


class _Values:
    """Writes arguments that come as text, one by one, with the types that the tool's schema gives them."""

    def __init__(self, writer: CallWriter, name: str) -> None:
        self._writer = writer
        self._properties = writer.schema_of(name).get("properties") or {}
        self._count = 0
        writer.start(name)

    def read(self, cursor: Cursor, key: str, ends: tuple[str, ...]) -> Reading[None]:
        """Read a value up to one of `ends`; a string is handed on as it comes."""
        separator = ", " if self._count else "{"
        self._count += 1
        self._writer.arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
        if _is_text(self._properties.get(key)):
            yield from self._string(cursor, ends)
        else:
            text = (yield from cursor.text_until(*ends)).strip()
            self._writer.arguments(_typed(text, self._properties.get(key)))

    def end(self) -> None:
        """All arguments were read."""
        self._writer.arguments("}" if self._count else "{}")

    def _string(self, cursor: Cursor, ends: tuple[str, ...]) -> Reading[None]:
        """Hand on a text between line breaks that belong to the form and not to the text."""
        writer, held = self._writer, "\n"

        def take(piece: str) -> None:
            nonlocal held
            text = held + piece
            # The last line break may be the one before the end.
            held = "\n" if text.endswith("\n") else ""
            writer.arguments(json.dumps(text.removesuffix("\n"), ensure_ascii=False)[1:-1])

        if (yield from cursor.starts_with("\n")):
            cursor.take(1)
        held = ""
        writer.arguments('"')
        if (yield from cursor.until(ends, take)) is None:
            raise Unreadable(ends[0])
        writer.arguments('"')


def _is_text(schema: Any) -> bool:
    """Whether a value is certainly a string."""
    return isinstance(schema, Mapping) and (
        schema.get("type") == "string" or _are_strings(schema.get("enum"))
    )


def _are_strings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _typed(text: str, schema: Any) -> str:
    """Return a value's JSON text: as it stands when it is JSON, else as Python would have it, else a string."""
    if isinstance(schema, Mapping) and "string" in (schema.get("type") or ()):
        return json.dumps(text, ensure_ascii=False)
    try:
        _loaded(text)
    except ValueError:
        return _literal(text)
    return text


def _literal(text: str) -> str:
    try:
        return _dumped(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return json.dumps(text, ensure_ascii=False)


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
        yield from _arguments_of("".join(found), cursor, writer)
        if end is not None:
            yield from cursor.space()
            yield from _optional(cursor, end)

    return read


def _arguments_of(name: str, cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read the object of arguments, which may stand in a fence as in a document."""
    name, fence, behind = name.strip(), "```json", ""
    if name == "function":
        # DeepSeek V3: the word, the separator, the name, a fence.
        name = (yield from cursor.text_until("\n")).strip()
    yield from cursor.space()
    if (yield from cursor.starts_with(fence)):
        cursor.take(len(fence))
        yield from cursor.space()
        behind = "```"
    if (yield from cursor.ahead(1)) != "{":
        raise Unreadable("an object of arguments")
    # Kimi numbers its calls in their names: `functions.look:0`.
    plain = re.sub(r"^functions\.|:\d+$", "", name)
    writer.start(_checked(plain))
    reader = Json(cursor)
    yield from reader.value(writer.arguments)
    for _ in range(reader.repairs):
        writer.repaired()
    if behind:
        yield from cursor.space()
        yield from _optional(cursor, behind)


def pythonic(end: str | None) -> Grammar:
    """Return the grammar of `[look(at="cats"), wait()]` (Llama 3.2, LFM2), up to `end` or the end of the answer."""

    def read(cursor: Cursor, writer: CallWriter) -> Reading[None]:
        parts = list[str]()
        if end is None:
            yield from cursor.rest(parts.append)
        elif (yield from cursor.until((end,), parts.append)) is None:
            raise Unreadable(end)
        for name, arguments in _python_calls("".join(parts).strip()):
            writer.start(name)
            writer.arguments(arguments)

    return read


def _python_calls(text: str) -> list[tuple[str, str]]:
    """Return the names of calls, with the JSON text of their arguments."""
    try:
        body = ast.parse(text, mode="eval").body
        calls = body.elts if isinstance(body, (ast.List, ast.Tuple)) else [body]
        found = [
            (_checked(ast.unparse(call.func)), _dumped(_keywords(call)))
            for call in calls
            if isinstance(call, ast.Call) and not call.args
        ]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Unreadable("calls as Python writes them") from None
    if not found or len(found) != len(calls):
        raise Unreadable("calls as Python writes them")
    return found


def _keywords(call: ast.Call) -> dict[str, Any]:
    # `**` has no name, and sorts of arguments that JSON has none for are told from calls by the caller.
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}


def _checked(name: str) -> str:
    name = name.strip()
    if not NAME.fullmatch(name):
        raise Unreadable("the name of a tool")
    return name


def _optional(cursor: Cursor, mark: str) -> Reading[None]:
    """Read white space and `mark`, if it is there; models leave it out at the end of an answer."""
    yield from cursor.space()
    if (yield from cursor.starts_with(mark)):
        cursor.take(len(mark))
