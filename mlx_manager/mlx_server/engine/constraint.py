"""Hold an answer to a grammar: before each draw, exclude every token that can't go on a text of that grammar.

llguidance compiles grammars and knows which tokens fit; here are the vocabulary it needs and the sampler that asks it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from mlx_manager.mlx_server.engine.messages import Constraint

BITS_PER_WORD = 32
# llguidance would write the grammar, which is the client's, and the answer so far on standard error, which is logged.
SILENT = 0
LIMITS = LLParserLimits(verbose_errors=False)
Sampler = Callable[[mx.array], mx.array]


class Vocabulary:
    """The tokens of the model in `path` as grammars see them; read when the first grammar comes, about a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokenizers: dict[tuple[int, ...], LLTokenizer] = {}

    def matcher(self, grammar: str, end_token_ids: list[int]) -> LLMatcher:
        """Return what follows an answer through `grammar`. Raises ValueError, without its words, when it is none."""
        tokenizer = self._tokenizer(tuple(end_token_ids))
        matcher = LLMatcher(tokenizer, grammar, log_level=SILENT, limits=LIMITS)
        if matcher.is_error():
            raise ValueError("a grammar that the model's tokens can't be held to")
        return matcher

    def _tokenizer(self, end_token_ids: tuple[int, ...]) -> LLTokenizer:
        if end_token_ids not in self._tokenizers:
            text = Tokenizer.from_file(str(self._path / "tokenizer.json")).to_str()
            self._tokenizers[end_token_ids] = LLTokenizer(text, eos_token=list(end_token_ids))
        return self._tokenizers[end_token_ids]


class ConstrainedSampler:
    """Draws with `draw` from what the grammar allows. It belongs to one sequence and is called once for each token.

    With trigger tokens in the constraint everything is allowed until one of them was drawn. A text that is complete
    can only end; or, when the constraint repeats, go on freely until the next trigger.
    """

    def __init__(
        self, constraint: Constraint, matcher: LLMatcher, end_token_ids: list[int], draw: Sampler
    ) -> None:
        self._triggers = frozenset(constraint.trigger_token_ids)
        self._repeats = constraint.repeats
        self._matcher = matcher
        self._end_token_ids = end_token_ids
        self._draw = draw
        self._is_active = not self._triggers
        self._last: mx.array | None = None

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Return the next token of the row, `[1, vocabulary]` -> `[1]`. Waits until the one before is known."""
        if self._last is not None:
            drawn: Any = self._last.item()
            self._follow(drawn)
        if self._is_active:
            logprobs = _held(logprobs, self._allowed(logprobs.shape[-1]))
        self._last = self._draw(logprobs)
        return self._last

    def _follow(self, token_id: int) -> None:
        """Take note of the token that was drawn."""
        if not self._is_active:
            self._is_active = token_id in self._triggers
            return
        self._matcher.consume_token(token_id)
        if self._repeats and self._matcher.is_accepting() and self._matcher.is_stopped():
            self._matcher.reset()
            self._is_active = False

    def _allowed(self, vocabulary: int) -> mx.array:
        """Return which tokens may come, `[vocabulary]`."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        if self._matcher.is_error():
            # A limit was hit within the grammar. Nothing may be drawn that could break it, so the answer ends; that it
            # is not complete is told by the runner.
            # The reason is a word of llguidance's; its message would quote.
            sys.stderr.write(f"grammar given up: {self._matcher.stop_reason()}\n")
            return _only(self._end_token_ids, vocabulary)
        bits = (mx.array(words)[:, None] >> mx.arange(BITS_PER_WORD, dtype=mx.uint32)) & 1
        allowed = bits.reshape(-1)[:vocabulary].astype(mx.bool_)
        # A model's output may be wider than its tokenizer's vocabulary.
        return mx.pad(allowed, (0, vocabulary - allowed.size))


def _held(logits: mx.array, is_allowed: mx.array) -> mx.array:
    """Return the logits of what is allowed. Where a bias or a least length left none of it, all of it is as likely."""
    kept = mx.where(is_allowed, logits, -mx.inf)
    is_empty = kept.max(axis=-1, keepdims=True) == -mx.inf
    return mx.where(is_empty, mx.where(is_allowed, 0.0, -mx.inf), kept)


def _only(token_ids: list[int], vocabulary: int) -> mx.array:
    allowed = mx.zeros(vocabulary, mx.bool_)
    allowed[mx.array(token_ids)] = True
    return allowed
