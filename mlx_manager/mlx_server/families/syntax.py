"""What the grammars of calls share: whom they tell what they find, and the small things that all of them read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mlx_manager.mlx_server.families.cursor import Cursor, Reading, Unreadable

NAME = re.compile(r"[\w.:/-]{1,256}")
# An escape in JSON or Python can make half a pair, which has no encoding in UTF-8.
HALF_A_PAIR = re.compile("[\ud800-\udfff]")


class CallWriter(Protocol):
    """Takes the calls of one answer, one after the other.

    What a grammar read and didn't hand on by the time it raises Unreadable is kept: as the rest of the arguments of a
    call that began, else as text.
    """

    def start(self, name: str) -> None:
        """A call begins."""
        ...

    def arguments(self, text: str) -> None:
        """Some more of the JSON text of its arguments."""
        ...

    def end(self) -> None:
        """Its arguments are complete."""
        ...

    def settle(self) -> None:
        """What was read behind a call belongs to it, and says nothing."""
        ...

    def repaired(self) -> None:
        """Something in the call was not as it should be, and what was meant is certain.

        Of what turns out to be text it is not told, so that a grammar says it as soon as it knows.
        """
        ...

    def malformed(self) -> None:
        """Something stands within or between calls that belongs to none; it is handed on as text."""
        ...

    def text(self, piece: str) -> None:
        """Some of what stands within or between calls and belongs to none."""
        ...

    def left_out(self, characters: int) -> None:
        """So much of a call was read that a call has no place for."""
        ...

    def schema_of(self, name: str) -> Mapping[str, Any]:
        """The JSON schema of a tool's arguments; empty when there is none."""
        ...


Grammar = Callable[[Cursor, CallWriter], Reading[None]]


def checked(name: str) -> str:
    """Return a name without the space around it. Raises Unreadable when no tool can be called that."""
    name = name.strip()
    if not NAME.fullmatch(name):
        raise Unreadable("the name of a tool")
    return name


def optional(cursor: Cursor, mark: str) -> Reading[None]:
    """Read white space and `mark`, if it is there; models leave it out at the end of an answer."""
    yield from cursor.space()
    if (yield from cursor.starts_with(mark)):
        cursor.take(len(mark))


def expected(cursor: Cursor, mark: str) -> Reading[None]:
    """Read `mark`. Raises Unreadable when something else stands there."""
    if not (yield from cursor.starts_with(mark)):
        raise Unreadable(mark)
    cursor.take(len(mark))


def loaded(text: str) -> Any:
    """Return a value of JSON, strictly. Raises ValueError also for one that is too deep to be read."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("too many levels") from None


def dumped(value: Any) -> str:
    """Return a value's JSON text. Raises ValueError for numbers that JSON has none for, TypeError for other values."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return json.dumps(value) if HALF_A_PAIR.search(text) else text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
