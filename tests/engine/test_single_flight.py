"""Prompts that arrive together and begin alike are read once."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_manager.mlx_server.engine.single_flight import common
from tests.engine.driving import Driver, answer_alone
from tests.engine.models import VOCABULARY, WatchedModel

LOTS = 1 << 30
PROMPT = [(31 * at * at + 7 * at + 5) % VOCABULARY for at in range(600)]


def turned(shared: int, rest: int, seed: int) -> list[int]:
    return PROMPT[:shared] + [(seed + 13 * at) % VOCABULARY for at in range(rest)]


def computed(model: WatchedModel) -> int:
    return sum(rows * tokens for rows, tokens in model.shapes)


def test_identical_prompts_are_read_once(any_batched: WatchedModel) -> None:
    expected = answer_alone(any_batched, PROMPT)
    driver = Driver(any_batched, prefix_cache_bytes=LOTS)
    any_batched.shapes.clear()
    leader, *others = [driver.submit(PROMPT) for _ in range(4)]
    driver.finish()
    assert [driver.tokens[one] for one in (leader, *others)] == [expected] * 4
    assert driver.following == [(other, leader) for other in others]
    assert computed(any_batched) <= len(PROMPT) + 4 * 14
    for other in others:
        stamps = driver.ended[other].stamps
        assert stamps.cached_tokens == len(PROMPT) - 1
        assert stamps.following_ns > 0
        assert stamps.admitted_ns is not None
        assert stamps.admitted_ns >= stamps.received_ns + stamps.following_ns
    assert driver.ended[leader].stamps.following_ns == 0


def test_one_that_found_room_is_not_said_to_have_waited_for_any(lively_model: Any) -> None:
    driver = Driver(WatchedModel(lively_model), prefix_cache_bytes=LOTS)
    first, second = driver.submit(PROMPT), driver.submit(PROMPT)
    driver.finish()
    assert driver.following == [(second, first)]
    assert driver.ended[second].stamps.queue_reason is None


def test_prompts_that_begin_alike_wait_for_what_they_share(any_batched: WatchedModel) -> None:
    prompts = [turned(400, 150, seed) for seed in range(3)]
    expected = [answer_alone(any_batched, prompt) for prompt in prompts]
    driver = Driver(any_batched, chunk=64, idle_chunk=64, prefix_cache_bytes=LOTS)
    ids = [driver.submit(prompt, borders=[400]) for prompt in prompts]
    driver.finish()
    assert [driver.tokens[one] for one in ids] == expected
    assert [driver.ended[one].stamps.cached_tokens for one in ids[1:]] == [400, 400]
    # They went on as soon as that was read, beside the rest of the first one.
    stamps = [driver.ended[one].stamps for one in ids]
    assert stamps[1].admitted_ns is not None
    assert stamps[0].first_token_ns is not None
    assert stamps[1].admitted_ns < stamps[0].first_token_ns


def test_one_that_waits_goes_on_where_a_cancelled_one_has_stopped(
    any_batched: WatchedModel,
) -> None:
    expected = answer_alone(any_batched, PROMPT)
    driver = Driver(any_batched, chunk=128, idle_chunk=128, prefix_cache_bytes=LOTS)
    first, second, third = (driver.submit(PROMPT) for _ in range(3))
    for _ in range(2):
        driver.step()
    driver.cancel(first)
    driver.finish()
    assert driver.following == [(second, first), (third, first), (third, second)]
    assert driver.tokens[second] == driver.tokens[third] == expected
    assert driver.ended[second].stamps.cached_tokens >= 256
    assert not driver.engine._following._was_followed, "nothing of those that have left"


def test_one_that_waits_can_be_cancelled(lively_model: Any) -> None:
    driver = Driver(WatchedModel(lively_model), chunk=64, prefix_cache_bytes=LOTS)
    first, second = driver.submit(PROMPT), driver.submit(PROMPT)
    driver.step()
    driver.cancel(second)
    driver.finish()
    assert driver.ended[second].reason == "cancelled"
    assert 0 < driver.ended[second].stamps.following_ns < 10**10
    assert driver.tokens[first] == answer_alone(WatchedModel(lively_model), PROMPT)
    assert driver.tokens[second] == []


def test_one_that_waits_outlives_a_batch_that_is_lost(lively_model: Any) -> None:
    model = WatchedModel(lively_model)
    expected = answer_alone(model, PROMPT)
    driver = Driver(model, chunk=64, prefix_cache_bytes=LOTS)
    first, second = driver.submit(PROMPT), driver.submit(PROMPT)
    driver.step()
    model.failure = RuntimeError("planned")
    driver.finish()
    assert driver.ended[first].reason == "lost"
    assert driver.tokens[second] == expected


@pytest.mark.parametrize("options", [{}, {"prefix_cache_bytes": LOTS}])
def test_nobody_waits_for_little_or_without_a_cache(
    lively_model: Any, options: dict[str, int]
) -> None:
    driver = Driver(WatchedModel(lively_model), **options)  # type: ignore[arg-type]
    shared = 255 if options else 600
    for seed in range(3):
        driver.submit(turned(shared, 100, seed))
    driver.finish()
    assert driver.following == []


def test_nobody_waits_for_what_is_stored(lively_model: Any) -> None:
    driver = Driver(WatchedModel(lively_model), prefix_cache_bytes=LOTS)
    driver.submit(PROMPT)
    driver.finish()
    for seed in range(3):
        driver.submit(turned(600, 100, seed))
    driver.finish()
    assert driver.following == []


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 599, 600])
def test_what_prompts_have_in_common_is_counted(length: int) -> None:
    assert common(PROMPT, [*PROMPT[:length], -1, *PROMPT[length:]]) == length
    assert common(PROMPT[:length], PROMPT) == length


def test_stored_prompts_have_what_running_rows_leave(lively_model: Any) -> None:
    model = WatchedModel(lively_model)
    row_bytes = 768 * 2 * 2 * 2 * 16 * 4
    budget = 3 * row_bytes // 2
    driver = Driver(model, prefix_cache_bytes=LOTS, kv_shared_bytes=budget)
    driver.submit(PROMPT)
    driver.finish()
    kept = driver.engine.vitals().prefix_cache_bytes
    assert kept == (len(PROMPT) + 12) * row_bytes // 768
    other = driver.submit(turned(0, 600, 3), 60)
    driver.step_until(other, 20)
    vitals = driver.engine.vitals()
    assert vitals.kv_bytes is not None
    assert 0 < vitals.prefix_cache_bytes < kept
    assert vitals.kv_bytes + vitals.prefix_cache_bytes <= budget
    driver.finish()
    assert driver.tokens[other] == answer_alone(model, turned(0, 600, 3), max_tokens=60)
