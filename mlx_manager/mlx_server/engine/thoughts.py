"""End an answer's thoughts when their budget is used up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_manager.mlx_server.engine.messages import ThoughtBudget

NO_TOKEN = 2**32 - 1
Sampler = Callable[[mx.array], mx.array]


class BudgetedSampler:
    """Draws with `draw`, and the end of the thoughts instead when they have had all their tokens.

    It belongs to one sequence and is called once for each of its tokens. Whether the model thinks, and for how long,
    are arrays that depend on what was drawn, so nothing waits for a token to be known. Where a grammar holds within
    thoughts and leaves no place for their end, they go on until it does. It goes on behind `made_token_ids`, which
    another sampler like it has drawn.
    """

    def __init__(
        self, budget: ThoughtBudget, draw: Sampler, made_token_ids: Sequence[int] = ()
    ) -> None:
        self._budget = budget
        self._draw = draw
        is_open, used, latest = _after(budget, made_token_ids)
        self._is_open = mx.array([is_open])
        self._used = mx.array([used])
        self._begin = mx.array(budget.begin_token_ids, mx.uint32)
        self._latest = mx.array(latest, mx.uint32)

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Return the next token of the row, `[1, vocabulary]` -> `[1]`."""
        end = self._budget.end_token_id
        drawn = self._draw(logprobs)
        is_due = self._is_open & (self._used >= self._budget.tokens)
        is_due = is_due & (logprobs[:, end] > -mx.inf)
        token = mx.where(is_due, mx.array(end, drawn.dtype), drawn)
        self._used = self._used + (self._is_open & (token != end))
        self._latest = mx.concatenate([self._latest[1:], token.astype(mx.uint32)])
        has_begun = (self._latest == self._begin).all()
        self._is_open = mx.where(self._is_open, token != end, has_begun)
        return token


def _after(budget: ThoughtBudget, token_ids: Sequence[int]) -> tuple[bool, int, list[int]]:
    """Return whether thoughts are open behind these tokens, how many they had, and the latest tokens.

    Those are as many as could be a mark; one that no token is stands for none.
    """
    is_open, used = budget.is_open, 0
    latest = [NO_TOKEN] * len(budget.begin_token_ids)
    for token_id in token_ids:
        used += is_open and token_id != budget.end_token_id
        latest = [*latest[1:], token_id]
        is_open = token_id != budget.end_token_id if is_open else latest == budget.begin_token_ids
    return is_open, used, latest
