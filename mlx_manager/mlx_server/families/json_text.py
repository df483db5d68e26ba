"""JSON as a model writes it, read letter by letter: strict, but for slips whose meaning is certain.

These are repaired, and `repaired` is called for each: Python's `True`, `False`, `None` and quotes, a comma too many, a
line break inside a string, and a string where the schema of a tool's arguments, at any depth, has other types and what
it says is of one of them. Anything else raises Unreadable where it stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from mlx_manager.mlx_server.families.cursor import Cursor, Reading, Take, Unreadable
from mlx_manager.mlx_server.families.typed import item_schema, member_schema, typed, types_of

MOST_LEVELS = 64
PYTHON_LITERALS = {"True": "true", "False": "false", "None": "null"}
LITERALS = {"true", "false", "null"} | set(PYTHON_LITERALS)
LITERAL = re.compile(r"[-+.\w]*")
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
PLAIN = re.compile(r"[^\"'\\\x00-\x1f]*")
CONTROLS = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
LONGEST_LITERAL = 400


class Json:
    """Reads values from `cursor` and hands their text on, valid JSON piece by piece.

    With the `schema` of a tool's arguments the members of objects and the items of arrays are held to its types.
    """

    # Slips in JSON that are none in the form that is read.
    own: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, cursor: Cursor, repaired: Callable[[], None], schema: Mapping[str, Any] | None = None
    ) -> None:
        self._cursor = cursor
        self._repaired = repaired
        self._root = schema or {}
        # The schema of what is being read.
        self._schema: Any = self._root

    def value(self, take: Take, level: int = 0) -> Reading[None]:
        """Read one value and hand it on."""
        if level > MOST_LEVELS:
            raise Unreadable(f"fewer than {MOST_LEVELS} levels of JSON")
        match (yield from self._cursor.ahead(1)):
            case "{":
                yield from self._items("}", take, level)
            case "[":
                yield from self._items("]", take, level)
            case '"' | "'":
                yield from self.string(take)
            case _:
                yield from self._literal(take)

    def text(self) -> Reading[str]:
        """Read one value and return its text."""
        parts = list[str]()
        yield from self.value(parts.append)
        return "".join(parts)

    def argument(self, key: str, take: Take) -> Reading[None]:
        """Read the value of the argument `key` and hand it on, whole where it is a string and may be none."""
        yield from self._held_to(member_schema(self._root, key, self._root), take, level=1)

    def value_of(self, schema: Any, take: Take) -> Reading[None]:
        """Read one value of `schema`, which is a part of the reader's, and hand it on."""
        self._schema = schema
        yield from self.value(take)

    def _held_to(self, schema: Any, take: Take, level: int) -> Reading[None]:
        types = types_of(schema, self._root)
        if "string" not in types and (yield from self._is_string()):
            text, is_repaired = typed((yield from self.text()), types)
            if is_repaired:
                self._repaired()
                text = fitted(text, self._repaired, schema, self._root)
            take(text)
            return
        outer, self._schema = self._schema, schema
        yield from self.value(take, level)
        self._schema = outer

    def string(self, take: Take) -> Reading[None]:
        """Read a string and hand it on, in double quotes."""
        quote = yield from self._cursor.ahead(1)
        if quote not in ('"', "'") or not quote:
            raise Unreadable("a string")
        self._cursor.take(1)
        if quote == "'":
            self._repaired()
        take('"')
        while (yield from self._piece(quote, take)):
            pass
        take('"')

    def _piece(self, quote: str, take: Take) -> Reading[bool]:
        """Read some of a string; False at its end."""
        character = yield from self._cursor.ahead(1)
        match character:
            case "":
                raise Unreadable("the end of a string")
            case "\\":
                take((yield from self._escape()))
            case '"' | "'":
                self._cursor.take(1)
                if character == quote:
                    return False
                take(character if character == "'" else '\\"')
            case _ if character < " ":
                self._repaired()
                self._cursor.take(1)
                take(CONTROLS.get(character, f"\\u{ord(character):04x}"))
            case _:
                plain = PLAIN.match(self._cursor.buffered)
                assert plain is not None
                take(self._cursor.take(plain.end()))
        return True

    def _escape(self) -> Reading[str]:
        kind = (yield from self._cursor.ahead(2))[1:]
        if kind == "u":
            digits = (yield from self._cursor.ahead(6))[2:]
            if not re.fullmatch("[0-9a-fA-F]{4}", digits):
                raise Unreadable("four hexadecimal digits")
            return self._cursor.take(6)
        if kind == "'":
            self._cursor.take(2)
            return kind
        if not kind or kind not in '"\\/bfnrt':
            raise Unreadable("an escape that JSON has")
        return self._cursor.take(2)

    def _items(self, end: str, take: Take, level: int) -> Reading[None]:
        """Read an object or an array up to `end`."""
        index = 0
        take(self._cursor.take(1))
        take((yield from self._cursor.space()))
        while (yield from self._cursor.ahead(1)) != end:
            if end == "}":
                yield from self._member(take, level)
            else:
                yield from self._item(index, take, level)
            index += 1
            yield from self._separator(end, take)
        take(self._cursor.take(1))

    def _member(self, take: Take, level: int) -> Reading[None]:
        key = list[str]()

        def keep(piece: str) -> None:
            key.append(piece)
            take(piece)

        yield from self._key(keep)
        yield from self._colon(take)
        schema = member_schema(self._schema, json.loads("".join(key)), self._root)
        yield from self._held_to(schema, take, level + 1)

    def _item(self, index: int, take: Take, level: int) -> Reading[None]:
        schema = item_schema(self._schema, index, self._root)
        yield from self._held_to(schema, take, level + 1)

    def _is_string(self) -> Reading[bool]:
        return (yield from self._cursor.ahead(1)) in ('"', "'")

    def _key(self, take: Take) -> Reading[None]:
        yield from self.string(take)

    def _colon(self, take: Take) -> Reading[None]:
        take((yield from self._cursor.space()))
        if (yield from self._cursor.ahead(1)) != ":":
            raise Unreadable("a colon")
        take(self._cursor.take(1))
        take((yield from self._cursor.space()))

    def _separator(self, end: str, take: Take) -> Reading[None]:
        """Read what comes after an item: the end, which is left there, or a comma."""
        take((yield from self._cursor.space()))
        match (yield from self._cursor.ahead(1)):
            case ",":
                comma = self._cursor.take(1)
                space = yield from self._cursor.space()
                is_too_many = (yield from self._cursor.ahead(1)) == end
                if is_too_many:
                    self._slip(comma)
                take(space if is_too_many else comma + space)
            case found if found != end:
                raise Unreadable(f"a comma or {end}")

    def _literal(self, take: Take) -> Reading[None]:
        """Read a number, `true`, `false` or `null`, whole: what is cut may go on."""
        word = yield from self._cursor.run(LITERAL, LONGEST_LITERAL)
        if word not in LITERALS and not NUMBER.fullmatch(word):
            raise Unreadable("a value")
        if word in PYTHON_LITERALS:
            self._slip(word)
        take(PYTHON_LITERALS.get(word, word))

    def _slip(self, written: str) -> None:
        if written not in self.own:
            self._repaired()


def fitted(text: str, repaired: Callable[[], None], schema: Any, root: Mapping[str, Any]) -> str:
    """Return a value's JSON text with what is in it as its `schema` says; references are into `root`.

    What is too deep or too long to be read stays as it is.
    """
    cursor, parts, repairs = Cursor(), list[str](), list[None]()
    cursor.feed(text)
    cursor.end()
    reader = Json(cursor, lambda: repairs.append(None), root)
    try:
        for _ in reader.value_of(schema, parts.append):
            pass
    except Unreadable:
        return text
    if cursor.buffered.strip():
        return text
    for _ in repairs:
        repaired()
    return "".join(parts)
