"""From the engine's token ids to the events of an answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence

from mlx_manager.chat.events import (
    Delta,
    Finished,
    FinishReason,
    Phase,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from mlx_manager.chat.request import Sampling
from mlx_manager.mlx_server.engine.messages import Logprobs
from mlx_manager.mlx_server.families.parser import AnswerParser
from mlx_manager.mlx_server.generation.echo import scored_echo
from mlx_manager.mlx_server.generation.logprobs import AnswerLogprobs
from mlx_manager.mlx_server.generation.model_text import ModelText
from mlx_manager.mlx_server.generation.text import Detokenizer, StopStrings
from mlx_manager.mlx_server.generation.thoughts import ThoughtCounter
from mlx_manager.mlx_server.workers.stream import TokenStream

# That no mark and no call begins with.
SOME_TEXT = "."


async def read_answer(
    tokens: TokenStream, reader: AnswerReader, input_tokens: int
) -> AsyncGenerator[Delta | Finished, None]:
    """Yield an answer as it comes, until the engine or the reader ends it, and then how it ended."""
    if reader.awaits_prompt:
        await tokens.prompt_read()
    for delta in reader.begin(tokens.prompt_logprobs):
        yield delta
    async for token_ids in tokens:
        for delta in reader.feed(token_ids, tokens.logprobs):
            yield delta
        if reader.is_stopped:
            await tokens.close_and_wait()
            break
    for delta in reader.finish():
        yield delta
    is_cut = tokens.ended is not None and tokens.ended.reason == "length"
    yield reader.finished(input_tokens, tokens.cached_tokens, is_cut=is_cut)


class AnswerReader:
    """Turns the tokens of one answer into what it says, and counts those that it took.

    `parser` tells reasoning and calls from text; without one all is text. `opening` is the part of the prompt that the
    answer begins with, an echo where there is no parser; `thoughts` counts those that have a limit. `used_tokens`
    counts up to the token that completed a stop string or the last call wanted; the engine may have been ahead of it.
    With `asked.top_logprobs` the text comes with
    its tokens' log-probabilities: of thoughts and calls there are none. `scored_token_ids` are the tokens of an opening
    that comes with them too.
    """

    def __init__(
        self,
        text: ModelText,
        stop: tuple[str, ...],
        asked: Sampling,
        parser: AnswerParser | None = None,
        opening: str = "",
        thoughts: ThoughtCounter | None = None,
        scored_token_ids: Sequence[int] = (),
    ) -> None:
        self.used_tokens = 0
        self._reasoning_tokens = 0
        # Characters of an echo are some of the answer; those that a parser is given begin a thought or a call.
        self._read_characters = 0 if parser else len(opening)
        self._end_token_ids = text.end_token_ids_for(asked)
        self._logprobs = None if asked.top_logprobs is None else AnswerLogprobs(text.token_bytes)
        self._detokenizer = Detokenizer(text.token_bytes, text.shown_ids if parser else frozenset())
        self._stop = StopStrings(stop)
        self._has_stop = bool(stop)
        self._phase: Phase | None = None
        self._parser = parser
        self._opening = opening
        self._thoughts = thoughts
        self._text = text
        self._scored_token_ids = scored_token_ids

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string or the only call has ended the answer."""
        return self._stop.is_matched or (self._parser is not None and self._parser.is_done)

    @property
    def awaits_prompt(self) -> bool:
        """Whether the answer begins with a prompt whose log-probabilities are wanted."""
        return bool(self._scored_token_ids)

    def skip_beginning(self) -> None:
        """Read what the client has of the answer already: it goes on within it, and not where a call may begin."""
        if self._parser is not None:
            self._parser.feed(self._opening + SOME_TEXT)
        self._opening = ""

    def begin(self, prompt_logprobs: Sequence[Logprobs] = ()) -> list[Delta]:
        """Return what the answer's opening, which the model was given, already says."""
        if self._scored_token_ids:
            ids = self._scored_token_ids
            return [scored_echo(self._opening, ids, prompt_logprobs, self._text)]
        if not self._opening:
            return []
        return self._parser.feed(self._opening) if self._parser else [TextDelta(self._opening)]

    def feed(self, token_ids: list[int], logprobs: Sequence[Logprobs] = ()) -> list[Delta]:
        """Take the next tokens, with their log-probabilities if they were asked for, and return what is now certain."""
        if self._logprobs is not None:
            pairs = zip(token_ids, logprobs, strict=True)
            return merged(delta for pair in pairs for delta in self._feed_likely(*pair))
        if self._has_stop or self._parser is not None:
            return merged(delta for token_id in token_ids for delta in self._feed_one(token_id))
        self.used_tokens += len(token_ids)
        if token_ids[-1] in self._end_token_ids:
            token_ids = token_ids[:-1]
        text = self._detokenizer.feed(token_ids)
        return [TextDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        """Return what was held back when the answer ended."""
        deltas = self._parsed(self._detokenizer.finish())
        if self._parser is not None and not self._stop.is_matched:
            deltas += self._stopped(self._parser.finish())
        rest = "" if self._stop.is_matched else self._stop.finish()
        deltas = merged([*deltas, TextDelta(rest)] if rest else deltas)
        return deltas if self._logprobs is None else self._last_likely(deltas, self._logprobs)

    def finished(self, input_tokens: int, cached_tokens: int, *, is_cut: bool) -> Finished:
        """Return how the answer ended; `is_cut` when the engine had to stop for want of tokens."""
        usage = Usage(input_tokens, self.used_tokens, cached_tokens, self._reasoning_tokens)
        return Finished(self._reason(is_cut=is_cut), usage, self._stop.matched)

    def _reason(self, *, is_cut: bool) -> FinishReason:
        if self._stop.is_matched:
            return "stop"
        if is_cut and not self.is_stopped:
            return "length"
        return "tool_calls" if self._parser is not None and self._parser.calls else "stop"

    def _feed_one(self, token_id: int) -> list[Delta]:
        if self._stop.is_matched:
            return []
        is_beyond = self.is_stopped
        self.used_tokens += not is_beyond
        if token_id in self._end_token_ids:
            return []
        if is_beyond:
            # The parser counts what it leaves out.
            return self._parsed(self._detokenizer.feed([token_id]))
        if self._thoughts is not None:
            self._thoughts.take(token_id)
        was_reasoning = self._is_reasoning
        deltas = self._parsed(self._detokenizer.feed([token_id]))
        # The marks around thoughts are part of their cost.
        self._reasoning_tokens += was_reasoning or self._is_reasoning
        return deltas

    def _feed_likely(self, token_id: int, likely: Logprobs) -> list[Delta]:
        """Take one token and return its text, if it is part of any, together with its log-probabilities."""
        if self._logprobs is None or self.is_stopped:
            return self._feed_one(token_id)
        offset, was_reasoning = self._read_characters, self._is_reasoning
        deltas = self._feed_one(token_id)
        is_of_thoughts = was_reasoning or self._is_reasoning or self._is_behind_thoughts
        if not (is_of_thoughts or token_id in self._end_token_ids):
            self._logprobs.add(token_id, likely, offset)
        return self._logprobs.go_with(deltas, self._certain_characters)

    def _last_likely(self, deltas: list[Delta], logprobs: AnswerLogprobs) -> list[Delta]:
        deltas = logprobs.go_with(deltas, self._certain_characters)
        # Between marks it can't be told any more whose a token without text is.
        rest = () if self._parser is not None or self.is_stopped else logprobs.take_all()
        return merged([*deltas, TextDelta("", rest)]) if rest else deltas

    @property
    def _certain_characters(self) -> int:
        """How many characters no stop string holds back any more."""
        return self._read_characters - self._stop.held_back

    @property
    def _is_reasoning(self) -> bool:
        return self._parser is not None and self._parser.is_reasoning

    @property
    def _is_behind_thoughts(self) -> bool:
        return self._parser is not None and self._parser.is_behind_thoughts

    def _parsed(self, text: str) -> list[Delta]:
        self._read_characters += len(text)
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
            if self._ends_text(delta) and (held_back := self._stop.finish()):
                # It stands before this, and no stop string goes on behind it.
                kept.append(TextDelta(held_back))
            if not isinstance(delta, TextDelta):
                kept.append(delta)
            elif text := self._stop.feed(delta.text):
                kept.append(TextDelta(text, phase=delta.phase))
        return kept

    def _ends_text(self, delta: Delta) -> bool:
        """Whether no text goes on with `delta`: it is none, or that of another message."""
        if not isinstance(delta, TextDelta):
            return True
        before, self._phase = self._phase, delta.phase or self._phase
        return self._phase != before


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """Return the same with neighbours of one kind in one piece."""
    found = list[Delta]()
    for delta in deltas:
        last = found[-1] if found else None
        match last, delta:
            case TextDelta(before, some, phase), TextDelta(more, others, of) if of in (None, phase):
                found[-1] = TextDelta(before + more, some + others, phase)
            case ReasoningDelta(before), ReasoningDelta(more):
                found[-1] = ReasoningDelta(before + more)
            case ToolCallDelta(index, before), ToolCallDelta(of, more) if index == of:
                found[-1] = ToolCallDelta(index, before + more)
            case _:
                found.append(delta)
    return found
