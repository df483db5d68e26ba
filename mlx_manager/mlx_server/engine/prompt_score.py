"""How likely the model found the tokens of a prompt, which is read apart: mlx-lm's batch keeps no logits of one."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_manager.mlx_server.engine.logprobs import most_likely
from mlx_manager.mlx_server.engine.messages import Logprobs, Submit

# Logits of so many positions at once: 128 of a vocabulary of 150,000 are 77 MB in float32.
PIECE_TOKENS = 128


class PromptScore:
    """Reads all tokens of one prompt but the last into `caches`, which are new and for one row."""

    def __init__(self, model: Any, submit: Submit, caches: list[Any]) -> None:
        self.submit = submit
        self.caches = caches
        self._model = model
        self._read_tokens = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing but the last token is left."""
        return self._read_tokens == len(self.submit.token_ids) - 1

    def read(self, tokens: int) -> list[Logprobs]:
        """Read up to so many more, and return the log-probabilities of those that follow each of them."""
        end = min(self._read_tokens + tokens, len(self.submit.token_ids) - 1)
        found = list[Logprobs]()
        while self._read_tokens < end:
            found += self._read(min(self._read_tokens + PIECE_TOKENS, end))
        return found

    def _read(self, end: int) -> list[Logprobs]:
        begin, self._read_tokens = self._read_tokens, end
        token_ids = self.submit.token_ids
        logits = self._model(mx.array([token_ids[begin:end]]), cache=self.caches)[0]
        mx.eval([cache.state for cache in self.caches])
        ids, counts = [self.submit.sequence_id], [self.submit.top_logprobs or 0]
        following = token_ids[begin + 1 : end + 1]
        return most_likely(ids * len(following), following, counts * len(following), logits)
