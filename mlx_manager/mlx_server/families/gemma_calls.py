"""Calls as Gemma writes them: `call:look{at:<escape>cats<escape>,days:3}` (FunctionGemma, Gemma 4).

Names are bare, strings stand between a mark of their own without any escapes, all else is JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from mlx_manager.mlx_server.families.cursor import Cursor, Reading, Take, Unreadable
from mlx_manager.mlx_server.families.json_calls import closing
from mlx_manager.mlx_server.families.json_text import MOST_LEVELS, Json
from mlx_manager.mlx_server.families.syntax import (
    CallWriter,
    Grammar,
    checked,
    dumped,
    expected,
)

LONGEST_NAME = 256
NAME_RUN = re.compile(r"[\w./-]*")
KEY_RUN = re.compile(r"[^\s:,{}\[\]<\"']*")
BEGINNING = "call:"


def gemma_calls(quote: str, end: str) -> Grammar:
    """Return the grammar of a call whose strings stand between `quote`, up to `end`."""

    def read(cursor: Cursor, writer: CallWriter) -> Reading[None]:
        yield from cursor.space()
        yield from expected(cursor, BEGINNING)
        yield from cursor.space()
        name = checked((yield from cursor.run(NAME_RUN, LONGEST_NAME)))
        yield from cursor.space()
        if not (yield from cursor.starts_with("{")):
            raise Unreadable("{")
        writer.start(name)
        reader = GemmaText(cursor, quote, writer.repaired, writer.schema_of(name))
        yield from reader.value(writer.arguments)
        writer.end()
        yield from closing(cursor, writer, end)

    return read


class GemmaText(Json):
    """Reads values as Gemma writes them and hands them on as JSON; values of JSON itself are read, too."""

    own: ClassVar[frozenset[str]] = frozenset({"None"})

    def __init__(
        self, cursor: Cursor, quote: str, repaired: Callable[[], None], schema: Mapping[str, Any]
    ) -> None:
        super().__init__(cursor, repaired, schema)
        self._quote = quote

    def value(self, take: Take, level: int = 0) -> Reading[None]:
        """Read one value and hand it on."""
        if level <= MOST_LEVELS and (yield from self._cursor.starts_with(self._quote)):
            yield from self._quoted(take)
        else:
            yield from super().value(take, level)

    def _quoted(self, take: Take) -> Reading[None]:
        self._cursor.take(len(self._quote))
        take('"')
        mark = yield from self._cursor.until(
            (self._quote,), lambda piece: take(json.dumps(piece, ensure_ascii=False)[1:-1])
        )
        if mark is None:
            raise Unreadable(self._quote)
        take('"')

    def _is_string(self) -> Reading[bool]:
        return (yield from self._cursor.starts_with(self._quote)) or (
            yield from super()._is_string()
        )

    def _key(self, take: Take) -> Reading[None]:
        """Read the name of a member, which has no quotes but may have some."""
        if (yield from self._cursor.starts_with(self._quote)):
            yield from self._quoted(take)
        elif (yield from self._cursor.ahead(1)) in ('"', "'"):
            yield from self.string(take)
        else:
            key = yield from self._cursor.run(KEY_RUN, LONGEST_NAME)
            if not key:
                raise Unreadable("a name")
            take(dumped(key))
