"""Hold an answer to a grammar: before each draw, exclude every token that can't go on a text of that grammar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_manager.mlx_server.engine.grammar import Matcher
from mlx_manager.mlx_server.engine.messages import Constraint

Sampler = Callable[[mx.array], mx.array]


class ConstrainedSampler:
    """Draws with `draw` from what the grammar allows. It belongs to one sequence and is called once for each token.

    With trigger tokens in the constraint everything is allowed until one of them was drawn. A text that is complete
    can only end; or, when the constraint repeats, go on freely until the next trigger. It goes on behind
    `made_token_ids`, which another sampler like it has drawn.
    """

    def __init__(
        self,
        constraint: Constraint,
        matcher: Matcher,
        end_token_ids: list[int],
        draw: Sampler,
        made_token_ids: Sequence[int] = (),
    ) -> None:
        self._triggers = frozenset(constraint.trigger_token_ids)
        self._repeats = constraint.repeats
        self._matcher = matcher
        self._end_token_ids = end_token_ids
        self._draw = draw
        self._is_active = not self._triggers
        self._last: mx.array | None = None
        for token_id in made_token_ids:
            self._follow(token_id)

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
        elif token_id in self._end_token_ids:
            # What is drawn behind it is thrown away.
            self._is_active = False
        else:
            self._matcher.take(token_id)
            if self._repeats and self._matcher.begin_again():
                self._is_active = False

    def _allowed(self, vocabulary: int) -> mx.array:
        """Return which tokens may come, `[vocabulary]`."""
        bits, may_end = self._matcher.allowed()
        # A model's output may be wider than its tokenizer's vocabulary.
        allowed = np.zeros(vocabulary, np.bool_)
        if self._matcher.is_given_up:
            # A limit was hit within the grammar. Nothing may be drawn that could break it, so the answer ends; that it
            # is not complete is told by the runner.
            sys.stderr.write(f"grammar given up: {self._matcher.why()}\n")
            may_end = True
        else:
            allowed[: bits.size] = bits[:vocabulary]
        # A grammar may also name one of them.
        allowed[self._end_token_ids] |= may_end
        return mx.array(allowed)


def _held(logits: mx.array, is_allowed: mx.array) -> mx.array:
    """Return the logits of what is allowed. Where a bias or a least length left none of it, all of it is as likely."""
    kept = mx.where(is_allowed, logits, -mx.inf)
    is_empty = kept.max(axis=-1, keepdims=True) == -mx.inf
    return mx.where(is_empty, mx.where(is_allowed, 0.0, -mx.inf), kept)
