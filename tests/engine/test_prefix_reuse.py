"""Answers are the same whether or not the beginning of their prompts came from the prefix cache.

What holds for every kind of layer, this one among them, is in `test_cache_kinds`: repeats, conversations, requests
that were cancelled.
"""

from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.models.cache import KVCache

from mlx_manager.mlx_server.engine.messages import SamplingParameters
from mlx_manager.mlx_server.engine.prefix_cache import BLOCK_TOKENS
from tests.engine.driving import Driver, answer_alone
from tests.engine.models import VOCABULARY, WatchedModel

LOTS = 1 << 30
PROMPT = [(31 * at * at + 7 * at + 5) % VOCABULARY for at in range(700)]


def turned(shared: int, rest: int = 40) -> list[int]:
    """A prompt that begins like `PROMPT` and goes on in its own way."""
    return PROMPT[:shared] + [
        (PROMPT[shared % 700] + 1 + 13 * at) % VOCABULARY for at in range(rest)
    ]


def cached(driver: Driver, sequence_id: int) -> int:
    return driver.ended[sequence_id].stamps.cached_tokens


@pytest.mark.parametrize("shared", [16, 255, 256, 257, 511, 512, 600, 699])
def test_an_answer_is_the_same_from_any_length_of_shared_beginning(
    model: WatchedModel, shared: int
) -> None:
    expected = answer_alone(model, turned(shared))
    driver = Driver(model, prefix_cache_bytes=LOTS)
    driver.submit(PROMPT)
    driver.finish()
    model.shapes.clear()
    sequence_id = driver.submit(turned(shared))
    driver.finish()
    assert driver.tokens[sequence_id] == expected
    assert cached(driver, sequence_id) == shared
    assert driver.ended[sequence_id].stamps.cache_miss_reason == "diverged"
    computed = sum(rows * tokens for rows, tokens in model.shapes)
    assert computed <= 40 + 12 + 1, "what is cached isn't computed"


def test_rows_with_and_without_a_cached_beginning_share_a_batch(model: WatchedModel) -> None:
    prompts = [turned(shared) for shared in (600, 300, 3)] + [PROMPT[350:500], PROMPT]
    expected = [answer_alone(model, prompt) for prompt in prompts]
    driver = Driver(model, prefix_cache_bytes=LOTS)
    driver.submit(PROMPT)
    driver.finish()
    ids = [driver.submit(prompt) for prompt in prompts]
    driver.finish()
    assert [driver.tokens[sequence_id] for sequence_id in ids] == expected
    assert [cached(driver, one) for one in ids] == [600, 300, 0, 0, 699]


def test_a_prompt_that_is_only_to_be_kept_is_read_and_nothing_is_written(
    model: WatchedModel,
) -> None:
    driver = Driver(model, prefix_cache_bytes=LOTS)
    kept = driver.submit(PROMPT, 0, top_logprobs=1)
    driver.finish()
    assert (driver.tokens[kept], driver.logprobs[kept]) == ([], [])
    assert driver.ended[kept].reason == "length"
    assert driver.ended[kept].stamps.output_tokens == 0
    again = driver.submit(turned(600))
    driver.finish()
    assert cached(driver, again) == 600
    assert driver.tokens[again] == answer_alone(model, turned(600))


def test_seeded_answers_do_not_depend_on_it(model: WatchedModel) -> None:
    sampling = SamplingParameters(temperature=1.0, seed=11, repetition_penalty=1.3)
    driver = Driver(model, prefix_cache_bytes=LOTS)
    answers = []
    for _ in range(2):
        sequence_id = driver.submit(PROMPT, 20, sampling=sampling)
        driver.finish()
        answers.append(driver.tokens[sequence_id])
    assert answers[0] == answers[1] == answer_alone(model, PROMPT, max_tokens=20, sampling=sampling)


def test_what_is_evicted_is_computed_again(model: WatchedModel) -> None:
    driver = Driver(model, prefix_cache_bytes=BLOCK_TOKENS * 2 * 2 * 2 * 16 * 4)
    expected = answer_alone(model, PROMPT)
    for prompt in (PROMPT, turned(0, 600), PROMPT):
        sequence_id = driver.submit(prompt)
        driver.finish()
    assert driver.tokens[sequence_id] == expected
    assert cached(driver, sequence_id) == 0
    memory = driver.engine.vitals()
    assert 0 < memory.prefix_cache_bytes <= BLOCK_TOKENS * 2 * 2 * 2 * 16 * 4


def test_a_prompt_that_is_an_earlier_one_with_its_answer_is_answered(model: WatchedModel) -> None:
    driver = Driver(model, prefix_cache_bytes=LOTS)
    first = driver.submit(PROMPT[:50])
    driver.finish()
    whole = [*PROMPT[:50], *driver.tokens[first]]
    second = driver.submit(whole)
    driver.finish()
    assert driver.tokens[second] == answer_alone(model, whole)
    assert cached(driver, second) == len(whole) - 1


def test_a_few_tokens_in_common_are_not_worth_it(model: WatchedModel) -> None:
    driver = Driver(model, prefix_cache_bytes=LOTS)
    driver.submit(PROMPT)
    driver.finish()
    sequence_id = driver.submit(turned(15))
    driver.finish()
    assert cached(driver, sequence_id) == 0


def test_it_is_off_without_a_budget(model: WatchedModel) -> None:
    driver = Driver(model)
    for _ in range(2):
        sequence_id = driver.submit(PROMPT)
        driver.finish()
    assert cached(driver, sequence_id) == 0
    assert driver.ended[sequence_id].stamps.cache_miss_reason == "off"


class Chunked(WatchedModel):
    """A model with caches of a kind that isn't known to come back."""

    def make_cache(self) -> list[Any]:
        return [RowsOnly() for _ in self.layers]  # type: ignore[no-untyped-call]


class RowsOnly(KVCache):
    """A cache that may keep more than a plain one."""


def test_a_model_whose_state_can_not_be_brought_back_says_so_and_answers(lively_model: Any) -> None:
    model = Chunked(lively_model)
    driver = Driver(model, prefix_cache_bytes=LOTS)
    answers = []
    for _ in range(2):
        sequence_id = driver.submit(PROMPT[:200])
        driver.finish()
        answers.append(driver.tokens[sequence_id])
        assert driver.ended[sequence_id].stamps.cache_miss_reason == "unsupported_model"
    assert answers[0] == answers[1]
