"""Text that comes in pieces, and generators that read it as if it were whole.

A reader that needs more text than there is yields, and is resumed when more has come or the text is over. So a grammar
is written down once, straight, and holds on every possible cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
Take = Callable[[str], None]


class Unreadable(Exception):
    """The text is not what the grammar expects; its message says what was expected."""


class Cursor:
    """A place in a text of which more may come. What was read is forgotten, except after `mark`."""

    def __init__(self) -> None:
        self._rest = ""
        self._marked: list[str] | None = None
        self.is_over = False

    @property
    def buffered(self) -> str:
        """The text that has come and was not read."""
        return self._rest

    def feed(self, text: str) -> None:
        """More text has come."""
        self._rest += text

    def end(self) -> None:
        """No more text will come."""
        self.is_over = True

    def mark(self) -> None:
        """Remember what is read from here on."""
        self._marked = []

    def unmark(self) -> str:
        """Forget the mark and return what was read since."""
        marked, self._marked = self._marked or [], None
        return "".join(marked)

    def take(self, length: int) -> str:
        """Read the next `length` characters, which must be there."""
        taken, self._rest = self._rest[:length], self._rest[length:]
        if self._marked is not None:
            self._marked.append(taken)
        return taken

    def ahead(self, length: int) -> Reading[str]:
        """Return the next `length` characters without reading them; fewer only at the end of the text."""
        while len(self._rest) < length and not self.is_over:
            yield
        return self._rest[:length]

    def starts_with(self, text: str) -> Reading[bool]:
        """Return whether `text` comes next; waits only while it may."""
        while len(self._rest) < len(text) and text.startswith(self._rest) and not self.is_over:
            yield
        return self._rest.startswith(text)

    def space(self) -> Reading[str]:
        """Read white space, as much as there is."""
        parts = list[str]()
        while True:
            blank = len(self._rest) - len(self._rest.lstrip())
            parts.append(self.take(blank))
            if self._rest or self.is_over:
                return "".join(parts)
            yield

    def until(self, marks: tuple[str, ...], take: Take) -> Reading[str | None]:
        """Hand on what comes before the first of `marks`, as it becomes certain, and read the mark.

        Returns the mark, or None when the text ends without one.
        """
        mark = yield from self.before(marks, take)
        return None if mark is None else self.take(len(mark))

    def before(self, marks: tuple[str, ...], take: Take) -> Reading[str | None]:
        """Hand on what comes before the first of `marks`, and return the mark, which is not read; None at the end."""
        while True:
            found = first_of(self._rest, marks)
            if found is not None:
                at, mark = found
                self._hand_on(at, take)
                return mark
            held_back = 0 if self.is_over else possible_start(self._rest, marks)
            self._hand_on(len(self._rest) - held_back, take)
            if self.is_over:
                return None
            yield

    def run(self, characters: re.Pattern[str], most: int) -> Reading[str]:
        """Read as many of `characters` (an expression of any number of them) as follow each other, up to `most`."""
        length = 0
        while len((yield from self.ahead(length + 1))) > length:
            found = characters.match(self._rest)
            assert found is not None
            length = min(found.end(), most)
            if length < len(self._rest) or length == most:
                break
        return self.take(length)

    def text_until(self, *marks: str) -> Reading[str]:
        """Read up to the first of `marks`, and the mark; return what comes before it. Unreadable when there is none."""
        parts = list[str]()
        if (yield from self.until(marks, parts.append)) is None:
            raise Unreadable(f"no {marks[0]}")
        return "".join(parts)

    def _hand_on(self, length: int, take: Take) -> None:
        if length:
            take(self.take(length))


def first_of(text: str, marks: tuple[str, ...]) -> tuple[int, str] | None:
    """Return where the first of `marks` is and which it is; the longest of those that begin together."""
    found = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    if not found:
        return None
    at, _, mark = min(found)
    return at, mark


def possible_start(text: str, marks: tuple[str, ...]) -> int:
    """Return the length of the longest end of `text` that could be the start of one of `marks`."""
    first_characters, longest = _starts(marks)
    ending = text[-longest:] if longest else ""
    # Asked for each token, and hardly any has one of these characters.
    if first_characters.isdisjoint(ending):
        return 0
    for at, character in enumerate(ending):
        if character in first_characters and any(mark.startswith(ending[at:]) for mark in marks):
            return len(ending) - at
    return 0


@lru_cache
def _starts(marks: tuple[str, ...]) -> tuple[frozenset[str], int]:
    """Return what marks begin with, a character each, and how long a start of one can be that isn't the whole of it."""
    return frozenset(mark[:1] for mark in marks), max(map(len, marks), default=1) - 1
