"""Prompts in different lanes are read as if each were alone, for every kind of cache, and nothing of them is left."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import pytest

from mlx_manager.mlx_server.engine.lanes import CLEAR_STEPS, LanedGenerator
from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.engine.runner import Runner
from mlx_manager.mlx_server.engine.sampling import greedy
from mlx_manager.mlx_server.engine.sequence import Lane
from tests.engine.driving import GREEDY, Driver, answer_alone
from tests.engine.models import VOCABULARY, WatchedModel

LOTS = 1 << 30
PROMPT = [(31 * at * at + 7 * at + 5) % VOCABULARY for at in range(300)]


def runner_with(model: Any, prompts: dict[int, tuple[list[int], Lane]]) -> Runner:
    runner = Runner(model, 8, LOTS)
    for sequence_id, (prompt, lane) in prompts.items():
        runner.insert(Submit(sequence_id, prompt, 5, [], GREEDY), lane=lane)
    return runner


@pytest.mark.parametrize("seed", range(2))
def test_every_row_says_what_it_says_alone_in_whatever_order_lanes_are_read(
    any_batched: WatchedModel, seed: int
) -> None:
    chosen = random.Random(seed)
    lengths = [1, 2, 40, 150, 299]
    prompts = {at: PROMPT[at : at + length] for at, length in enumerate(lengths, 1)}
    lanes: list[Lane] = [None, None, 3, 4, 4]
    expected = {
        at: answer_alone(any_batched, prompt, max_tokens=5) for at, prompt in prompts.items()
    }
    runner = runner_with(any_batched, {at: (prompts[at], lanes[at - 1]) for at in prompts})
    told: dict[int, list[int]] = {at: [] for at in prompts}
    while runner.row_ids:
        for token in runner.step(chosen.choice([0, 1, 30, 64]), chosen.choice(lanes)).tokens:
            told[token.sequence_id].append(token.token_id)
    assert told == expected
    assert runner.memory().kv_bytes in (0, None)


def test_a_step_reads_one_lane_and_pads_nothing_in_it(any_batched: WatchedModel) -> None:
    runner = runner_with(any_batched, {1: (PROMPT, 1), 2: (PROMPT[:41], None)})
    any_batched.shapes.clear()
    assert [runner.step(40, lane).prefilled for lane in (1, None, 1)] == [[1], [2], [1]]
    assert any_batched.shapes[:2] == [(1, 40), (1, 40)]
    assert [runner.read_tokens(one) for one in (1, 2)] == [80, 40]


@pytest.mark.parametrize("lane", [None, 1, 2])
def test_a_row_can_be_taken_out_whichever_lane_is_read(
    any_batched: WatchedModel, lane: Lane
) -> None:
    runner = runner_with(any_batched, {1: (PROMPT, 1), 2: (PROMPT[7:], 2), 3: (PROMPT[9:30], None)})
    for step in (1, 2, lane):
        runner.step(64, step)
    runner.remove(1)
    assert runner.stored_tokens(PROMPT) >= 64, "what it has read stays"
    assert runner.row_ids == [2, 3]
    told: list[int] = []
    while 2 in runner.row_ids:
        told += [one.token_id for one in runner.step(64, 2).tokens if one.sequence_id == 2]
    assert told == answer_alone(any_batched, PROMPT[7:], max_tokens=5)


def test_bytes_of_all_lanes_are_counted_and_given_back(model: WatchedModel) -> None:
    batch: Any = LanedGenerator(model, sampler=greedy, completion_batch_size=8)
    uids, counted = list[int](), [0]
    for lane in (None, 1, 2):
        batch.enter(lane)
        uids += batch.insert([PROMPT])
        batch.prefill_step_size = 100
        batch.next()
        counted.append(batch.prompt_cache_nbytes)
    assert counted == sorted(set(counted))
    keys = {uid: caches[0].keys for uid, (caches, _) in batch.extract_cache(uids).items()}
    assert all(mx.array_equal(one[:, :, :100], keys[0][:, :, :100]) for one in keys.values())
    batch.remove(uids)
    assert batch.prompt_cache_nbytes == 0


def test_who_has_read_everything_is_not_kept_by_others_that_read_on(
    any_batched: WatchedModel,
) -> None:
    """A prompt that is stored but for its last token, in a lane that is never read again."""
    driver = Driver(any_batched, chunk=16, idle_chunk=16, prefix_cache_bytes=LOTS)
    driver.submit(PROMPT[:100], max_tokens=1)
    driver.finish()
    long = driver.submit([*PROMPT[3:], *PROMPT], max_tokens=1)
    driver.step()
    warm = driver.submit(PROMPT[:100], max_tokens=3)
    driver.step_until(warm, 3)
    assert driver.tokens[long] == []


def test_mlx_lm_never_clears_buffers_behind_a_step_that_it_has_just_begun(
    models: dict[str, Any],
) -> None:
    """It does where its count of steps is a multiple of 512, and so that never is."""
    generator: Any = LanedGenerator(models["plain"], sampler=greedy, completion_batch_size=8)
    generator.insert_segments([[PROMPT[:4]]], max_tokens=[1100])
    counts, pooled = list[int](), dict[int, int]()
    for _ in range(1100):
        generator.next()
        counts.append(generator._counters.generation_steps)
        pooled[counts[-1]] = mx.get_cache_memory()
    assert {CLEAR_STEPS - 1, CLEAR_STEPS + 1, 2 * CLEAR_STEPS + 1} <= set(counts)
    assert not any(count % CLEAR_STEPS == 0 for count in counts if count)
    assert pooled[CLEAR_STEPS + 1] < pooled[CLEAR_STEPS - 1], "it is done all the same"
