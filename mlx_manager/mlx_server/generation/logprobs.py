"""Log-probabilities of an answer: each goes out with the text that its token begins."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from mlx_manager.chat.events import Delta, LikelyToken, TextDelta, TokenLogprobs
from mlx_manager.mlx_server.engine.messages import Logprobs
from mlx_manager.mlx_server.engine.token_bytes import TokenBytes


def likely(
    token_id: int, logprobs: Logprobs, offset: int, token_bytes: TokenBytes
) -> TokenLogprobs:
    """Return a token as clients are told of it, before which the text has `offset` characters."""
    token = LikelyToken(token_bytes.of(token_id), logprobs.logprob)
    pairs = zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True)
    top = tuple(LikelyToken(token_bytes.of(top_id), logprob) for top_id, logprob in pairs)
    return TokenLogprobs(token, top, offset)


class AnswerLogprobs:
    """Holds the tokens of one answer until their text has gone out: half characters and stop strings hold text back."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes = token_bytes
        self._held: deque[TokenLogprobs] = deque()

    def add(self, token_id: int, logprobs: Logprobs, offset: int) -> None:
        """Take the next token, before which the answer's text has `offset` characters."""
        self._held.append(likely(token_id, logprobs, offset, self._bytes))

    def go_with(self, deltas: list[Delta], certain: int) -> list[Delta]:
        """Return deltas with, in text, the tokens before the answer's `certain`th character that have not gone out.

        Those before anything else are dropped: they wrote a call, or a mark.
        """
        found = list[Delta]()
        for delta in deltas:
            if isinstance(delta, TextDelta):
                found.append(replace(delta, logprobs=self._take(certain)))
            else:
                self._held.clear()
                found.append(delta)
        return found

    def take_all(self) -> tuple[TokenLogprobs, ...]:
        """Return the others too: tokens without any text have nothing to wait for when the answer has ended."""
        taken, self._held = tuple(self._held), deque()
        return taken

    def _take(self, certain: int) -> tuple[TokenLogprobs, ...]:
        taken = list[TokenLogprobs]()
        while self._held and self._held[0].offset < certain:
            taken.append(self._held.popleft())
        return tuple(taken)
