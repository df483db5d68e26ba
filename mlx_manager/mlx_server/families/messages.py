"""Split answers in Harmony's form, which are messages with headers, into reasoning, text and calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from mlx_manager.chat.events import BETWEEN_MESSAGES, ReasoningDelta
from mlx_manager.chat.request import Tool
from mlx_manager.mlx_server.families.cursor import Cursor, Reading
from mlx_manager.mlx_server.families.family import Family
from mlx_manager.mlx_server.families.harmony import (
    LAST,
    MESSAGE,
    NEXT,
    PHASES,
    RECIPIENT_BEGINS,
    START,
    Header,
    header_of,
    is_beginning,
)
from mlx_manager.mlx_server.families.json_calls import object_call
from mlx_manager.mlx_server.families.parser import AnswerParser, Note, silent
from mlx_manager.mlx_server.families.syntax import CallWriter, checked


def answer_parser(
    family: Family, tools: Sequence[Tool] = (), *, is_parallel: bool = True, note: Note = silent
) -> AnswerParser:
    """Return what reads an answer of a model of `family`; see `AnswerParser`."""
    kind = MessageParser if family.in_messages else AnswerParser
    return kind(family, tools, is_parallel=is_parallel, note=note)


class MessageParser(AnswerParser):
    """Reads one answer that is messages. What has no header, or one that says nothing, is text."""

    def __init__(
        self,
        family: Family,
        tools: Sequence[Tool] = (),
        *,
        is_parallel: bool = True,
        note: Note = silent,
    ) -> None:
        super().__init__(family, tools, is_parallel=is_parallel, note=note)
        self._texts = _Joined(super()._emit_text)
        self._thoughts = _Joined(self._emit_thought)

    def _answer(self) -> Reading[None]:
        mark: str | None = ""
        while mark is not None and not self.is_done:
            before, header = yield from self._header(mark if mark in NEXT else "")
            if header is None:
                mark = before
            elif header.tool is not None and self._has_tools:
                mark = yield from self._tool_message(before or "", header.tool)
            elif header.channel == "analysis" and header.tool is None:
                mark = yield from self._analysis()
            else:
                # Without tools a call is text like any other.
                self._begin_text(header.channel if header.tool is None else None)
                self._emit_text("" if header.tool is None else before or "")
                mark = yield from self._cursor.until(LAST + NEXT, self._emit_text)

    def _header(self, mark: str) -> Reading[tuple[str | None, Header | None]]:
        """Read a header that began with `mark`, and return its text with what it says.

        Where none stands, what does is text; then the mark behind it, None at the end of the answer, and None.
        """
        if not mark:
            space = yield from self._cursor.space()
            if not (yield from self._is_header()):
                self._begin_text()
                self._emit_text(space)
                return (yield from self._cursor.until(LAST + NEXT, self._emit_text)), None
        parts = [mark]
        found = yield from self._cursor.until((MESSAGE, START, *LAST), parts.append)
        text = "".join(parts)
        if found == MESSAGE:
            return text + MESSAGE, header_of(text)
        if not is_beginning(text):
            self._begin_text()
            self._emit_text(text)
        return found, None

    def _is_header(self) -> Reading[bool]:
        """Whether a header comes next, and not the end of a message or of the answer."""
        for beginning in (RECIPIENT_BEGINS, *NEXT):
            if (yield from self._cursor.starts_with(beginning)):
                return True
        return False

    def _analysis(self) -> Reading[str | None]:
        self.is_reasoning = True
        self._note("reasoning_began", None)
        self._thoughts.begin()
        mark = yield from self._cursor.until(LAST + NEXT, self._thoughts)
        self.is_reasoning = False
        if mark is not None:
            self._note("reasoning_ended", None)
        return mark

    def _tool_message(self, before: str, name: str) -> Reading[str | None]:
        """Read a call and what stands behind its arguments, which is text."""
        self._begin_text()
        self._cursor.mark()
        is_ended = yield from self._calls(before, partial(_object_call, name), LAST)
        if is_ended or self.is_done:
            return ""
        yield from self._cursor.space()
        return (yield from self._cursor.until(LAST + NEXT, self._emit_text))

    def _begin_text(self, channel: str | None = None) -> None:
        """A message that may be text begins, in the channel that says what it is."""
        self._phase = PHASES.get(channel or "")
        self._texts.begin()

    def _emit_text(self, text: str) -> None:
        if text:
            self._texts(text)

    def _emit_thought(self, piece: str) -> None:
        self._deltas.append(ReasoningDelta(piece))


class _Joined:
    """Hands messages of one kind on as one text, with a blank line between them."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._has_some = False
        self._is_next = False

    def begin(self) -> None:
        """A message begins."""
        self._is_next = self._has_some

    def __call__(self, piece: str) -> None:
        """Some more of it."""
        self._take(BETWEEN_MESSAGES + piece if self._is_next else piece)
        self._has_some, self._is_next = True, False


def _object_call(name: str, cursor: Cursor, writer: CallWriter) -> Reading[None]:
    """Read the call of `name` whose arguments stand there; a message without any text has none."""
    yield from cursor.space()
    is_empty = not (yield from cursor.ahead(1))
    for mark in LAST:
        is_empty = is_empty or (yield from cursor.starts_with(mark))
    if not is_empty:
        yield from object_call(name, cursor, writer)
        return
    writer.start(checked(name))
    writer.arguments("{}")
    writer.repaired()
    writer.end()
