"""Several answers to one prompt: it is read once, and each is what it would be by itself."""

from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.models.cache import RotatingKVCache

from mlx_manager.mlx_server.engine.messages import SamplingParameters
from tests.engine.driving import Driver, answer_alone
from tests.engine.models import VOCABULARY, WatchedModel

LOTS = 1 << 30
PROMPT = [(31 * at * at + 7 * at + 5) % VOCABULARY for at in range(300)]
SEEDS = [11, 22, 33, 44, 55]


class SlidingModel(WatchedModel):
    """The same with layers that only see the latest tokens: their caches can't be cut."""

    def make_cache(self) -> list[Any]:
        return [RotatingKVCache(max_size=32, keep=0) for _ in self.layers]


def computed(model: WatchedModel) -> int:
    return sum(rows * tokens for rows, tokens in model.shapes)


def alone(model: Any, prompt: list[int], seed: int, max_tokens: int = 12) -> list[int]:
    sampling = SamplingParameters(temperature=1.0, seed=seed)
    return answer_alone(model, prompt, max_tokens=max_tokens, sampling=sampling)


@pytest.mark.parametrize("kind", [WatchedModel, SlidingModel])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:2], PROMPT[:1]])
def test_each_answer_is_what_its_seed_gives_alone(
    lively_model: Any, kind: type[WatchedModel], prompt: list[int]
) -> None:
    model = kind(lively_model)
    expected = [alone(model, prompt, seed) for seed in SEEDS]
    driver = Driver(model, prefix_cache_bytes=LOTS)
    ids = driver.submit_choices(prompt, SEEDS)
    driver.finish()
    assert [driver.tokens[one] for one in ids] == expected
    assert len(set(map(tuple, expected))) == len(SEEDS)
    assert {driver.ended[one].reason for one in ids} == {"length"}


@pytest.mark.parametrize("kind", [WatchedModel, SlidingModel])
def test_a_prompt_is_computed_once_and_its_answers_side_by_side(
    lively_model: Any, kind: type[WatchedModel]
) -> None:
    model = kind(lively_model)
    driver = Driver(model)
    driver.submit_choices(PROMPT, SEEDS)
    driver.finish()
    # A step of look-ahead for each row, and what goes on once more as rows leave.
    assert computed(model) <= len(PROMPT) + len(SEEDS) * (12 + 3)
    assert max(rows for rows, _ in model.shapes) == len(SEEDS)


def test_greedy_answers_are_equal_also_where_the_prompt_is_cached(model: WatchedModel) -> None:
    driver = Driver(model, prefix_cache_bytes=LOTS)
    first = driver.submit(PROMPT)
    driver.finish()
    ids = driver.submit_choices(PROMPT, [None] * 3, temperature=0.0)
    driver.finish()
    assert [driver.tokens[one] for one in ids] == [driver.tokens[first]] * 3
    assert driver.ended[ids[0]].stamps.cached_tokens == len(PROMPT) - 1


def test_more_answers_than_places_come_one_after_the_other(model: WatchedModel) -> None:
    driver = Driver(model, max_batch=2)
    ids = driver.submit_choices(PROMPT, SEEDS)
    driver.finish()
    assert [driver.tokens[one] for one in ids] == [alone(model, PROMPT, seed) for seed in SEEDS]


def test_one_token_each_is_enough(model: WatchedModel) -> None:
    driver = Driver(model)
    ids = driver.submit_choices(PROMPT, SEEDS, max_tokens=1)
    driver.finish()
    assert [len(driver.tokens[one]) for one in ids] == [1] * len(SEEDS)


@pytest.mark.parametrize("steps", [0, 1, 5, 9])
def test_cancelled_in_whatever_state_all_are_gone(model: WatchedModel, steps: int) -> None:
    driver = Driver(model, chunk=64, idle_chunk=64)
    ids = driver.submit_choices(PROMPT, SEEDS, max_tokens=1000)
    for _ in range(steps):
        driver.step()
    assert driver.engine.vitals().waiting + driver.engine.vitals().running == len(SEEDS)
    for one in ids:
        driver.cancel(one)
    driver.finish()
    assert {driver.ended[one].reason for one in ids} == {"cancelled"}
    assert driver.engine.vitals().waiting + driver.engine.vitals().running == 0


def test_when_the_one_that_reads_is_cancelled_the_others_read_for_themselves(
    model: WatchedModel,
) -> None:
    driver = Driver(model, chunk=64, idle_chunk=64)
    first, *others = driver.submit_choices(PROMPT, SEEDS)
    driver.step()
    driver.cancel(first)
    driver.finish()
    assert [driver.tokens[one] for one in others] == [
        alone(model, PROMPT, seed) for seed in SEEDS[1:]
    ]


def test_one_cancelled_while_the_prompt_is_read_leaves_the_others(model: WatchedModel) -> None:
    driver = Driver(model, chunk=64, idle_chunk=64)
    ids = driver.submit_choices(PROMPT, SEEDS)
    driver.step()
    driver.cancel(ids[2])
    driver.finish()
    assert driver.ended[ids[2]].reason == "cancelled"
    kept = [one for one in ids if one != ids[2]]
    assert [len(driver.tokens[one]) for one in kept] == [12] * 4


def test_a_batch_that_fails_takes_no_answer_that_waits_for_its_prompt(
    model: WatchedModel,
) -> None:
    driver = Driver(model, chunk=64, idle_chunk=64)
    first, *others = driver.submit_choices(PROMPT, SEEDS)
    driver.step()
    model.failure = RuntimeError("lost")
    driver.finish()
    assert driver.ended[first].reason == "lost"
    assert [driver.tokens[one] for one in others] == [
        alone(model, PROMPT, seed) for seed in SEEDS[1:]
    ]
