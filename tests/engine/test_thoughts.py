"""A budget ends thoughts at its very token, and leaves alone whatever is none."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import pytest

from mlx_manager.mlx_server.engine.messages import ThoughtBudget
from mlx_manager.mlx_server.engine.thoughts import BudgetedSampler
from mlx_manager.mlx_server.generation.thoughts import ThoughtCounter

BEGIN, END, CHANNEL = 1, 2, 3
LOGITS = mx.zeros((1, 8))


def drawn(wish: Sequence[int], budget: ThoughtBudget, logits: mx.array = LOGITS) -> list[int]:
    """What comes of a model that wants to say `wish`, whatever happens to it."""
    wishes = iter(wish)
    sampler = BudgetedSampler(budget, lambda _: mx.array([next(wishes)], mx.uint32))
    tokens = [sampler(logits) for _ in wish]
    assert {token.dtype for token in tokens} == {mx.uint32}
    assert {token.shape for token in tokens} == {(1,)}
    said: list[int] = mx.concatenate(tokens).tolist()  # type: ignore[assignment]
    return said


@pytest.mark.parametrize(
    ("tokens", "is_open", "wish", "said"),
    [
        (3, True, [5, 5, 5, 5, 5], [5, 5, 5, END, 5]),
        (0, True, [5, 5], [END, 5]),
        (3, True, [5, 5, END, 5, 5], [5, 5, END, 5, 5]),
        (3, True, [5, 5, 5, END, 5], [5, 5, 5, END, 5]),
        (2, False, [5, BEGIN, 5, 5, 5, 5], [5, BEGIN, 5, 5, END, 5]),
        (0, False, [BEGIN, 5, 5], [BEGIN, END, 5]),
        (2, False, [5] * 6, [5] * 6),
        (3, False, [BEGIN, 5, END, 5, BEGIN, 5, 5, 5], [BEGIN, 5, END, 5, BEGIN, 5, 5, END]),
    ],
)
def test_thoughts_have_as_many_tokens_as_they_may(
    tokens: int, is_open: bool, wish: list[int], said: list[int]
) -> None:
    assert drawn(wish, ThoughtBudget(tokens, [BEGIN], END, is_open)) == said


def test_an_end_that_a_grammar_leaves_no_place_for_waits() -> None:
    held = LOGITS.at[:, END].add(-mx.inf)
    assert drawn([5] * 5, ThoughtBudget(2, [BEGIN], END, True), held) == [5] * 5


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ([BEGIN, CHANNEL, 5, 5, 5], [BEGIN, CHANNEL, 5, 5, END]),
        ([CHANNEL, BEGIN, CHANNEL, 5, 5, 5], [CHANNEL, BEGIN, CHANNEL, 5, 5, END]),
        ([BEGIN, 5, CHANNEL, 5, 5, 5], [BEGIN, 5, CHANNEL, 5, 5, 5]),
        ([5, END, BEGIN, CHANNEL, 5, END, 5], [5, END, BEGIN, CHANNEL, 5, END, 5]),
    ],
)
def test_a_mark_of_several_tokens_begins_thoughts_when_all_are_there(
    wish: list[int], said: list[int]
) -> None:
    budget = ThoughtBudget(2, [BEGIN, CHANNEL], END)
    assert drawn(wish, budget) == said
    cuts = list[int]()
    counter = ThoughtCounter(budget, lambda: cuts.append(1))
    for token in said:
        counter.take(token)
    assert bool(cuts) == (said != wish)
