"""Split what a model writes, however it is cut, into reasoning, text and the calls of tools. Nothing is dropped."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_manager.chat.events import (
    Delta,
    FindingKind,
    Phase,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from mlx_manager.chat.request import Tool
from mlx_manager.mlx_server.families.cursor import Cursor, Reading, Unreadable
from mlx_manager.mlx_server.families.family import CallSyntax, Family
from mlx_manager.mlx_server.families.syntax import Grammar

Note = Callable[[FindingKind, str | int | None], None]


def silent(_kind: FindingKind, _detail: str | int | None) -> None:
    """Take no notes."""


class AnswerParser:
    """Reads one answer of a model of `family` that may call `tools`; without any, a call is text like any other.

    `is_parallel` False ends the answer behind its first call; how much comes behind it is noted when it is finished.
    `is_behind_thoughts` is so while nothing but white space has followed them, which is part of nothing.
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
        self.is_behind_thoughts = False
        self._family = family
        self._note = note
        self._cursor = Cursor()
        self._writer = _Writer(
            family,
            tools,
            self._emit,
            self._beside,
            note,
            self._cursor.mark,
            is_parallel=is_parallel,
        )
        self._left_out = 0
        self._phase: Phase | None = None
        self._space = list[str]()
        self._has_tools = bool(tools)
        self._deltas = list[Delta]()
        self._reading = self._everything()
        self._is_read = False

    @property
    def is_done(self) -> bool:
        """Whether the only call that is wanted is complete."""
        return self._writer.is_done

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return self._writer.calls

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

    def _everything(self) -> Reading[None]:
        yield from self._answer()
        if self.is_done:
            # What says nothing by itself is nothing left out.
            says_nothing = (*self._family.framing, *self._family.silent)
            while (yield from self._cursor.until(says_nothing, self._leave_out)):
                pass
            if self._left_out:
                self._note("tool_call_left_out", self._left_out)

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
        family = self._family
        always = (*(family.reasoning or ())[:1], *family.framing)
        return (*always, *family.calls, *family.silent) if self._has_tools else always

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
            self.is_behind_thoughts = True
            yield from self._cursor.space()
            self.is_behind_thoughts = False

    def _bare_call(self) -> Reading[None]:
        """Read an answer that may be nothing but calls, without a mark before them."""
        self._cursor.mark()
        yield from self._cursor.space()
        grammar = self._family.bare.get((yield from self._cursor.ahead(1)))
        if grammar is None:
            self._emit_text(self._cursor.unmark())
        else:
            yield from self._calls("", grammar, (), is_bare=True)

    def _call(self, mark: str, syntax: CallSyntax) -> Reading[None]:
        space = self._taken_space()
        self._cursor.mark()
        ends = (syntax.end,) if syntax.end else ()
        yield from self._calls(space + mark, syntax.grammar, ends)

    def _calls(
        self, before: str, grammar: Grammar, ends: tuple[str, ...], *, is_bare: bool = False
    ) -> Reading[bool]:
        """Read calls; `before` is what was read of them already. What is none is text.

        Returns whether one of `ends` was read because what stands before it is no call.
        """
        is_ended = False
        self._writer.begin(is_bare=is_bare)
        try:
            yield from grammar(self._cursor, self._writer)
            self._writer.settle()
        except Unreadable:
            read = self._cursor.unmark()
            if self.is_done:
                self._leave_out(read)
            else:
                is_ended = yield from self._malformed(before, read, ends)
        self._cursor.unmark()
        return is_ended

    def _malformed(self, before: str, read: str, ends: tuple[str, ...]) -> Reading[bool]:
        """Hand on what can't be read as a call, `read` behind what could be, in the only place that it has."""
        if not self._writer.is_open:
            self._note("tool_call_malformed", None)
            self._emit_text(read if self._writer.count else before + read)
            return False
        # Behind its beginning, which the client has, a call can only go on as the model wrote it.
        if not self._cursor.is_over:
            self._note("tool_call_malformed", None)
        self._writer.arguments(read)
        is_ended = (yield from self._cursor.until(ends, self._writer.arguments)) is not None
        self._writer.hand_on()
        return is_ended

    def _beside(self, piece: str) -> None:
        """Take text that stands beside a call."""
        if self.is_done:
            self._leave_out(piece)
        else:
            self._text(piece)

    def _leave_out(self, piece: str) -> None:
        """Count what stands behind the only call that is wanted, white space excepted."""
        self._left_out += len("".join(piece.split()))

    def _emit(self, delta: Delta) -> None:
        self._deltas.append(delta)

    def _emit_text(self, text: str) -> None:
        if text:
            self._deltas.append(TextDelta(text, phase=self._phase))

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
    """The `CallWriter` of one answer.

    `say` takes text that stands beside calls; `forget` is called when all that was read is the client's. Once the only
    call wanted is complete no other can begin, and slips behind it don't matter.
    """

    def __init__(
        self,
        family: Family,
        tools: Sequence[Tool],
        emit: Callable[[Delta], None],
        say: Callable[[str], None],
        note: Note,
        forget: Callable[[], None],
        *,
        is_parallel: bool,
    ) -> None:
        self._id_length = family.call_id_length
        self._schemas = {tool.name: tool.parameters for tool in tools}
        self._emit = emit
        self._say = say
        self._note = note
        self._forget = forget
        self._is_parallel = is_parallel
        self._is_bare = False
        self._repairs = 0
        self._beside = list[str]()
        self.calls = 0
        self.count = 0
        self.is_open = False
        self.is_done = False

    def begin(self, *, is_bare: bool) -> None:
        """A mark was read; `is_bare` when there was none, and only a known name tells a call from text."""
        self.count = 0
        self.is_open = False
        self._is_bare = is_bare
        # Those of what turned out to be text.
        self._repairs = 0

    def start(self, name: str) -> None:
        if self.is_done:
            raise Unreadable("no other call")
        if self._is_bare and name not in self._schemas:
            raise Unreadable("the name of a tool that there is")
        self.count += 1
        self.calls += 1
        self.is_open = True
        # A name of the model's own making may be anything, and is content.
        self._note("tool_call_began", name if name in self._schemas else None)
        self._emit(ToolCallStarted(self.calls - 1, self._new_id(), name))
        self.settle()

    def arguments(self, text: str) -> None:
        if text:
            self._emit(ToolCallDelta(self.calls - 1, text))
        self.settle()

    def end(self) -> None:
        self.is_open = False
        self._note("tool_call_ended", None)
        self.hand_on()
        self.is_done = not self._is_parallel
        self.settle()

    def settle(self) -> None:
        for _ in range(self._repairs):
            self._note("tool_call_repaired", None)
        self._repairs = 0
        self._forget()

    def repaired(self) -> None:
        self._repairs += not self.is_done

    def text(self, piece: str) -> None:
        self._beside.append(piece)
        if not self.is_open:
            self.hand_on()
        self.settle()

    def hand_on(self) -> None:
        """Say what stood within a call."""
        for piece in self._beside:
            self._say(piece)
        self._beside.clear()

    def malformed(self) -> None:
        if not self.is_done:
            self._note("tool_call_malformed", None)

    def left_out(self, characters: int) -> None:
        self._note("tool_call_left_out", characters)

    def schema_of(self, name: str) -> Mapping[str, Any]:
        return self._schemas.get(name, {})

    def _new_id(self) -> str:
        digits = uuid.uuid4().hex
        return digits[: self._id_length] if self._id_length else f"call_{digits[:24]}"


_END = object()
