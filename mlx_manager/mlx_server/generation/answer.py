"""From the engine's token ids to the events of an answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from mlx_manager.chat.events import (
    Delta,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from mlx_manager.mlx_server.families.parser import AnswerParser
from mlx_manager.mlx_server.generation.model_text import ModelText
from mlx_manager.mlx_server.generation.text import Detokenizer, StopStrings
from mlx_manager.mlx_server.workers.stream import TokenStream


async def read_answer(
    tokens: TokenStream, reader: AnswerReader, input_tokens: int
) -> AsyncGenerator[Delta | Finished, None]:
    """Yield an answer as it comes, until the engine or the reader ends it, and then how it ended."""
    for delta in reader.begin():
        yield delta
    async for token_ids in tokens:
        for delta in reader.feed(token_ids):
            yield delta
        if reader.is_stopped:
            await tokens.close_and_wait()
            break
    else:
        for delta in reader.finish():
            yield delta
    is_cut = tokens.ended is not None and tokens.ended.reason == "length"
    yield reader.finished(input_tokens, is_cut=is_cut)


class AnswerReader:
    """Turns the tokens of one answer into what it says, and counts those that it took.

    `parser` tells reasoning and calls from text; without one all is text. `opening` is the part of the prompt that the
    answer begins with. `used_tokens` counts up to the token that completed a stop string or the last call wanted; the
    engine may have been ahead of it.
    """

    def __init__(
        self,
        text: ModelText,
        stop: tuple[str, ...],
        parser: AnswerParser | None = None,
        opening: str = "",
    ) -> None:
        self.used_tokens = 0
        self._reasoning_tokens = 0
        self._end_token_ids = text.end_token_ids
        self._detokenizer = Detokenizer(text.tokenizer, text.shown_ids if parser else frozenset())
        self._stop = StopStrings(stop)
        self._has_stop = bool(stop)
        self._parser = parser
        self._opening = opening

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string or the only call has ended the answer."""
        return self._stop.is_matched or (self._parser is not None and self._parser.is_done)

    def begin(self) -> list[Delta]:
        """Return what the answer's opening, which the model was given, already says."""
        return self._parser.feed(self._opening) if self._parser and self._opening else []

    def feed(self, token_ids: list[int]) -> list[Delta]:
        """Take the next tokens and return what is now certain."""
        if self._has_stop or self._parser is not None:
            return merged(delta for token_id in token_ids for delta in self._feed_one(token_id))
        self.used_tokens += len(token_ids)
        if token_ids[-1] in self._end_token_ids:
            token_ids = token_ids[:-1]
        text = self._detokenizer.feed(token_ids)
        return [TextDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        """Return what was held back when the engine ended the answer."""
        deltas = self._parsed(self._detokenizer.finish())
        if self._parser is not None and not self.is_stopped:
            deltas += self._stopped(self._parser.finish())
        rest = "" if self._stop.is_matched else self._stop.finish()
        return merged([*deltas, TextDelta(rest)] if rest else deltas)

    def finished(self, input_tokens: int, *, is_cut: bool) -> Finished:
        """Return how the answer ended; `is_cut` when the engine had to stop for want of tokens."""
        usage = Usage(input_tokens, self.used_tokens, reasoning_tokens=self._reasoning_tokens)
        return Finished(self._reason(is_cut=is_cut), usage, self._stop.matched)

    def _reason(self, *, is_cut: bool) -> FinishReason:
        if self._stop.is_matched:
            return "stop"
        if is_cut and not self.is_stopped:
            return "length"
        return "tool_calls" if self._parser is not None and self._parser.calls else "stop"

    def _feed_one(self, token_id: int) -> list[Delta]:
        if self.is_stopped:
            return []
        self.used_tokens += 1
        if token_id in self._end_token_ids:
            return []
        was_reasoning = self._is_reasoning
        deltas = self._parsed(self._detokenizer.feed([token_id]))
        # The marks around thoughts are part of their cost.
        self._reasoning_tokens += was_reasoning or self._is_reasoning
        return deltas

    @property
    def _is_reasoning(self) -> bool:
        return self._parser is not None and self._parser.is_reasoning

    def _parsed(self, text: str) -> list[Delta]:
        if self._parser is None:
            return self._stopped([TextDelta(text)] if text else [])
        return self._stopped(self._parser.feed(text)) if text else []

    def _stopped(self, deltas: list[Delta]) -> list[Delta]:
        """Look for stop strings in the text; thoughts and calls can't hold one."""
        if not self._has_stop:
            return deltas
        kept = list[Delta]()
        for delta in deltas:
            if self._stop.is_matched:
                break
            if not isinstance(delta, TextDelta):
                kept.append(delta)
            elif text := self._stop.feed(delta.text):
                kept.append(TextDelta(text))
        return kept


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """Return the same with neighbours of one kind in one piece."""
    found = list[Delta]()
    for delta in deltas:
        last = found[-1] if found else None
        match last, delta:
            case TextDelta(before), TextDelta(more):
                found[-1] = TextDelta(before + more)
            case ReasoningDelta(before), ReasoningDelta(more):
                found[-1] = ReasoningDelta(before + more)
            case ToolCallDelta(index, before), ToolCallDelta(of, more) if index == of:
                found[-1] = ToolCallDelta(index, before + more)
            case _:
                found.append(delta)
    return found
