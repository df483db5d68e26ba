"""How the tokens of one row are drawn: by its sampling, within its budget of thoughts, and held to its grammar."""

from __future__ import annotations

from collections.abc import Callable

from mlx_manager.mlx_server.engine.constraint import ConstrainedSampler
from mlx_manager.mlx_server.engine.grammar import Matcher
from mlx_manager.mlx_server.engine.messages import Constraint, Submit, ThoughtBudget
from mlx_manager.mlx_server.engine.sampling import (
    LogitsProcessor,
    Sampler,
    SteeredSampler,
    sampler_for,
)
from mlx_manager.mlx_server.engine.thoughts import BudgetedSampler

Drawing = tuple[Sampler, Matcher | None]


def drawing_for(submit: Submit, matcher: Matcher | None) -> Drawing:
    """Return what chooses the tokens of a row, and follows them through a grammar."""
    held = None
    if submit.constraint is not None and matcher is not None:
        held = _holding(submit, submit.constraint, matcher)
    if submit.thought_budget is not None:
        held = _within(submit.thought_budget, submit.made_token_ids, held)
    sampler = sampler_for(
        submit.sampling, submit.token_ids, submit.end_token_ids, held, submit.made_token_ids
    )
    return sampler, matcher


def processors_for(sampler: Sampler) -> list[LogitsProcessor]:
    """Return what shall see a row's logits before mlx-lm normalises them.

    Only where it can't be done without: with one such row in the batch mlx-lm takes the logits of all rows apart and
    puts them together again, and keeps the row's tokens in an array of their own.
    """
    if isinstance(sampler, SteeredSampler) and sampler.needs_logits:
        return [sampler.keep_logits]
    return []


def _holding(
    submit: Submit, constraint: Constraint, matcher: Matcher
) -> Callable[[Sampler], Sampler]:
    return lambda draw: ConstrainedSampler(
        constraint, matcher, submit.end_token_ids, draw, submit.made_token_ids
    )


def _within(
    budget: ThoughtBudget, made_token_ids: list[int], held: Callable[[Sampler], Sampler] | None
) -> Callable[[Sampler], Sampler]:
    """Keep a draw within a budget first: a grammar that begins behind thoughts is to see their end."""

    def hold(draw: Sampler) -> Sampler:
        budgeted = BudgetedSampler(budget, draw, made_token_ids)
        return budgeted if held is None else held(budgeted)

    return hold
