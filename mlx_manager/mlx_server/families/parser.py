"""Split what a model writes, however it is cut, into reasoning, text and the calls of tools. Nothing is dropped."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_manager.chat.events import (
    Delta,
    FindingKind,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from mlx_manager.chat.request import Tool
from mlx_manager.mlx_server.families.calls import Grammar
from mlx_manager.mlx_server.families.cursor import Cursor, Reading, Unreadable
from mlx_manager.mlx_server.families.family import CallSyntax, Family

Note = Callable[[FindingKind, str | None], None]


def silent(_kind: FindingKind, _detail: str | None) -> None:
    """Take no notes."""


class AnswerParser:
    """Reads one answer of a model of `family` that may call `tools`; without any, a call is text like any other.

    `is_parallel` False ends the answer behind its first call.
    """

    def __init__(
        self,
        family: Family,
        tools: Sequence[Tool] = (),
        *,
        is_parallel: bool = True,
        note: Note = silent,
    ) -> None:
        self.is_reasoning = False
        self.is_done = False
        self.calls = 0
        self._family = family
        self._is_parallel = is_parallel
        self._note = note
        self._cursor = Cursor()
        self._writer = _Writer(family, tools, self._emit, note)
        self._space = list[str]()
        self._has_tools = bool(tools)
        self._deltas = list[Delta]()
        self._reading: Reading[None] = self._answer()
        self._is_read = False

    def feed(self, text: str) -> list[Delta]:
        """Take more of the answer and return what is now certain of it."""
        self._cursor.feed(text)
        return self._read()

    def finish(self) -> list[Delta]:
        """Return what was held back, as nothing more will come."""
        self._cursor.end()
        return self._read()

    def _read(self) -> list[Delta]:
        if not self._is_read:
            self._is_read = next(self._reading, _END) is _END
        deltas, self._deltas = self._deltas, []
        return deltas

    def _answer(self) -> Reading[None]:
        marks = self._marks()
        if self._has_tools and self._family.bare:
            yield from self._bare_call()
        while not self.is_done:
            mark = yield from self._cursor.until(marks, self._text)
            if mark is None:
                self._emit_text(self._taken_space())
                return
            if self._family.reasoning and mark == self._family.reasoning[0]:
                yield from self._reason()
            elif mark in self._family.calls:
                yield from self._call(mark, self._family.calls[mark])

    def _marks(self) -> tuple[str, ...]:
        reasoning = self._family.reasoning[:1] if self._family.reasoning else ()
        return reasoning + ((*self._family.calls, *self._family.silent) if self._has_tools else ())

    def _reason(self) -> Reading[None]:
        """Read thoughts up to their end, without the white space around them."""
        assert self._family.reasoning is not None
        self.is_reasoning = True
        self._space.clear()
        self._note("reasoning_began", None)
        yield from self._cursor.space()
        mark = yield from self._cursor.until((self._family.reasoning[1],), self._thought)
        self.is_reasoning = False
        self._space.clear()
        if mark is not None:
            self._note("reasoning_ended", None)
            yield from self._cursor.space()

    def _bare_call(self) -> Reading[None]:
        """Read an answer that may be nothing but calls, without a mark before them."""
        self._cursor.mark()
        yield from self._cursor.space()
        grammar = self._family.bare.get((yield from self._cursor.ahead(1)))
        if grammar is None:
            self._emit_text(self._cursor.unmark())
        else:
            yield from self._calls("", grammar, None, is_bare=True)

    def _call(self, mark: str, syntax: CallSyntax) -> Reading[None]:
        space = self._taken_space()
        self._cursor.mark()
        yield from self._calls(space + mark, syntax.grammar, syntax.end)

    def _calls(
        self, before: str, grammar: Grammar, end: str | None, *, is_bare: bool = False
    ) -> Reading[None]:
        """Read calls; `before` is what was read of them already. What is none is text."""
        self._writer.begin(is_bare=is_bare)
        try:
            yield from grammar(self._cursor, self._writer)
            self._cursor.unmark()
            self._note("tool_call_ended", None)
        except Unreadable:
            read = self._cursor.unmark()
            if self._writer.count == 0:
                self._note("tool_call_malformed", None)
                self._emit_text(before + read)
            elif not self._cursor.is_over:
                # Behind its beginning, which the client has, a call can only go on as the model wrote it.
                self._note("tool_call_malformed", None)
                yield from self._cursor.until((end,) if end else (), self._writer.arguments)
        self.calls += self._writer.count
        self.is_done = not self._is_parallel and self.calls > 0

    def _emit(self, delta: Delta) -> None:
        self._deltas.append(delta)

    def _emit_text(self, text: str) -> None:
        if text:
            self._deltas.append(TextDelta(text))

    def _text(self, piece: str) -> None:
        """Emit text, and hold back the white space at its end while a call may follow, to which it would belong."""
        plain = self._without_space(piece) if self._has_tools else piece
        self._emit_text(plain)

    def _thought(self, piece: str) -> None:
        plain = self._without_space(piece)
        if plain:
            self._deltas.append(ReasoningDelta(plain))

    def _without_space(self, piece: str) -> str:
        """Return what is held back and `piece`, without the white space at the end, which is held back now."""
        plain = piece.rstrip()
        if plain:
            plain = self._taken_space() + plain
        # In a list: a model may write nothing else for long, and joining each time would take the square of it.
        self._space.append(piece[len(piece.rstrip()) :])
        return plain

    def _taken_space(self) -> str:
        space = "".join(self._space)
        self._space.clear()
        return space


class _Writer:
    """The `CallWriter` of one answer."""

    def __init__(
        self, family: Family, tools: Sequence[Tool], emit: Callable[[Delta], None], note: Note
    ) -> None:
        self._id_length = family.call_id_length
        self._schemas = {tool.name: tool.parameters for tool in tools}
        self._emit = emit
        self._note = note
        self._index = -1
        self._is_bare = False
        self.count = 0

    def begin(self, *, is_bare: bool) -> None:
        """A mark was read; `is_bare` when there was none, and only a known name tells a call from text."""
        self.count = 0
        self._is_bare = is_bare

    def start(self, name: str) -> None:
        if self._is_bare and name not in self._schemas:
            raise Unreadable("the name of a tool that there is")
        self.count += 1
        self._index += 1
        # A name of the model's own making may be anything, and is content.
        self._note("tool_call_began", name if name in self._schemas else None)
        self._emit(ToolCallStarted(self._index, self._new_id(), name))

    def arguments(self, text: str) -> None:
        self._emit(ToolCallDelta(self._index, text))

    def repaired(self) -> None:
        self._note("tool_call_repaired", None)

    def schema_of(self, name: str) -> Mapping[str, Any]:
        return self._schemas.get(name, {})

    def _new_id(self) -> str:
        digits = uuid.uuid4().hex
        return digits[: self._id_length] if self._id_length else f"call_{digits[:24]}"


_END = object()
