"""From the engine's token ids to the events of an answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from mlx_manager.chat.events import Finished, FinishReason, TextDelta, Usage
from mlx_manager.mlx_server.generation.model_text import ModelText
from mlx_manager.mlx_server.generation.text import Detokenizer, StopStrings
from mlx_manager.mlx_server.workers.stream import TokenStream


async def read_answer(
    tokens: TokenStream, text: ModelText, stop: tuple[str, ...], input_tokens: int
) -> AsyncGenerator[TextDelta | Finished, None]:
    """Yield text as it comes, until the engine or a stop string ends the answer, and then how it ended."""
    reader = AnswerReader(text, stop)
    async for token_ids in tokens:
        if delta := reader.feed(token_ids):
            yield TextDelta(delta)
        if reader.is_stopped:
            await tokens.close_and_wait()
            break
    else:
        if delta := reader.finish():
            yield TextDelta(delta)
    is_cut = tokens.ended is not None and tokens.ended.reason == "length"
    reason: FinishReason = "length" if is_cut and not reader.is_stopped else "stop"
    yield Finished(reason, Usage(input_tokens, reader.used_tokens))


class AnswerReader:
    """Turns the tokens of one answer into its text and counts those that it took.

    `used_tokens` counts up to the one that completed a stop string; the engine may have been ahead of it.
    """

    def __init__(self, text: ModelText, stop: tuple[str, ...]) -> None:
        self.used_tokens = 0
        self._end_token_ids = text.end_token_ids
        self._detokenizer = Detokenizer(text.tokenizer)
        self._stop = StopStrings(stop)
        self._has_stop = bool(stop)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stop.is_matched

    def feed(self, token_ids: list[int]) -> str:
        """Take the next tokens and return the text that is now certain."""
        if self._has_stop:
            return "".join(map(self._feed_one, token_ids))
        self.used_tokens += len(token_ids)
        if token_ids[-1] in self._end_token_ids:
            token_ids = token_ids[:-1]
        return self._detokenizer.feed(token_ids)

    def finish(self) -> str:
        """Return what was held back when the engine ended the answer."""
        rest = self._stop.feed(self._detokenizer.finish())
        return rest if self.is_stopped else rest + self._stop.finish()

    def _feed_one(self, token_id: int) -> str:
        if self.is_stopped:
            return ""
        self.used_tokens += 1
        if token_id in self._end_token_ids:
            return ""
        return self._stop.feed(self._detokenizer.feed([token_id]))
