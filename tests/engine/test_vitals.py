"""What an engine says of itself once a second."""

from __future__ import annotations

from typing import Any

from mlx_lm.models.cache import KVCache

from mlx_manager.mlx_server.engine.batch_curve import LEAST_STEPS, REMEMBERED_STEPS, BatchCurve
from mlx_manager.mlx_server.engine.kv_cost import measure_kv_cost
from mlx_manager.mlx_server.engine.messages import (
    STEP_BOUNDS_S,
    BatchPoint,
    SamplingParameters,
    StepTimes,
    Submit,
)
from mlx_manager.mlx_server.engine.runner import Runner
from mlx_manager.mlx_server.engine.step_clock import StepClock
from mlx_manager.observability.attributes import ENGINE_STEP_DURATION
from tests.engine.driving import Driver
from tests.engine.models import WatchedModel

PROMPT = list(range(20, 60))
# Keys and values of 2 layers, each 2 heads of 16 floats.
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4


def test_it_says_who_waits_who_runs_and_what_their_keys_and_values_take(
    model: WatchedModel,
) -> None:
    driver = Driver(model, max_batch=2)
    empty = driver.engine.vitals()
    ids = [driver.submit(PROMPT, max_tokens=30) for _ in range(5)]
    driver.step_until(ids[0], 3)
    busy = driver.engine.vitals()
    assert (empty.waiting, empty.running, empty.kv_bytes) == (0, 0, 0)
    assert (busy.waiting, busy.running) == (3, 2)
    assert busy.kv_bytes is not None
    # Memory is taken in pieces of 256 tokens.
    assert 2 * len(PROMPT) * TOKEN_BYTES < busy.kv_bytes <= 2 * 256 * TOKEN_BYTES
    assert busy.active_bytes >= busy.kv_bytes
    driver.finish()
    over = driver.engine.vitals()
    assert (over.waiting, over.running, over.kv_bytes) == (0, 0, 0)
    assert over.pooled_bytes > 0


def test_it_says_how_long_the_steps_since_the_last_time_took(model: WatchedModel) -> None:
    driver = Driver(model)
    driver.submit(PROMPT, max_tokens=20)
    driver.finish()
    first, second = driver.engine.vitals(), driver.engine.vitals()
    # Two to read the prompt and its last token, and one for each token.
    assert sum(group.count for group in first.steps) >= 20
    assert all(group.total_ns > 0 for group in first.steps)
    assert second.steps == []


def test_it_says_how_long_steps_take_by_how_many_rows_decode(model: WatchedModel) -> None:
    driver = Driver(model)
    short = driver.submit(PROMPT, max_tokens=20)
    long = driver.submit(PROMPT, max_tokens=40)
    driver.step_until(short, 5)
    assert driver.engine.vitals().batch_curve == [], "too few steps to say anything"
    driver.finish()
    alone, together = driver.engine.vitals().batch_curve
    assert (alone.rows, together.rows) == (1, 2)
    assert alone.step_ns > 0 < together.step_ns
    assert len(driver.tokens[long]) == 40


def test_the_middle_one_of_the_last_steps_counts_and_those_that_read_do_not() -> None:
    curve = BatchCurve()
    for at in range(LEAST_STEPS):
        curve.note(1_000_000_000 if at == 3 else 4_000_000, 0, rows=1)
        curve.note(9_000_000, 0, rows=3)
        curve.note(70_000_000, 256, rows=3)
        curve.note(80_000_000, 0, rows=0)
    assert curve.points() == [BatchPoint(1, 4_000_000), BatchPoint(3, 9_000_000)]
    for _ in range(REMEMBERED_STEPS):
        curve.note(2_000_000, 0, rows=3)
    assert curve.points() == [BatchPoint(1, 4_000_000), BatchPoint(3, 2_000_000)]


def test_it_says_what_those_that_run_were_promised(model: WatchedModel) -> None:
    driver, cost = Driver(model, max_batch=2, kv_budget_bytes=2**30), measure_kv_cost(model)
    assert cost is not None
    ids = [driver.submit(PROMPT, max_tokens=tokens) for tokens in (500, 30)]
    driver.step_until(ids[1], 3)
    # Each row of the batch is as long as the longest one may become.
    assert driver.engine.vitals().promised_kv_bytes == 2 * cost.row_bytes(len(PROMPT) + 500)
    driver.finish()
    assert driver.engine.vitals().promised_kv_bytes == 0


class SilentCache(KVCache):
    """A kind of cache that doesn't count its bytes, as mlx-lm allows."""

    @property
    def nbytes(self) -> int:
        raise NotImplementedError


class SilentModel(WatchedModel):
    def make_cache(self) -> list[SilentCache]:
        return [SilentCache() for _ in self.layers]  # type: ignore[no-untyped-call]


def test_keys_and_values_that_can_not_be_counted_are_unknown_not_zero(lively_model: Any) -> None:
    runner = Runner(SilentModel(lively_model), max_batch=2)
    runner.insert(Submit(1, PROMPT, 5, [], SamplingParameters()))
    assert runner.memory().kv_bytes is None


def test_steps_are_counted_between_bounds_and_summed_exactly() -> None:
    clock = StepClock()
    for duration_ns in (1, 500_000, 500_001, 3_000_000, 4_000_000, 99_000_000_000):
        clock.add(duration_ns)
    assert clock.take() == [
        StepTimes(2, 500_001),
        StepTimes(1, 500_001),
        StepTimes(2, 7_000_000),
        StepTimes(1, 99_000_000_000),
    ]
    assert clock.take() == []


def test_the_engine_counts_by_the_bounds_that_the_metric_has() -> None:
    """The engine knows no telemetry, so the numbers stand in two places."""
    assert ENGINE_STEP_DURATION.buckets == STEP_BOUNDS_S
