"""Many sequences in one engine: each gets the answer it would get alone, and none harms another.

Answers are compared token by token. The model is float32, where rows computed together and alone differ by rounding
only; its two most likely tokens are far enough apart for that never to turn a choice on these prompts.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlx_manager.mlx_server.engine.blas_threads import BlasThreads
from mlx_manager.mlx_server.engine.engine import Engine
from mlx_manager.mlx_server.engine.messages import Cancel, SamplingParameters, Submit
from mlx_manager.mlx_server.engine.runner import Runner
from mlx_manager.mlx_server.engine.scheduler import Limits, Scheduler
from tests.engine.driving import Driver, answer_alone, pairs
from tests.engine.models import VOCABULARY, WatchedModel

PROMPTS = [
    [(17 * row + 31 * at * at) % VOCABULARY for at in range(9 + 13 * row)] for row in range(6)
]
LONG = [(7 * at * at + at) % VOCABULARY for at in range(400)]


def test_the_model_of_these_tests_looks_at_the_whole_prompt(model: WatchedModel) -> None:
    answers = [answer_alone(model, prompt) for prompt in ([1, *LONG[:80]], [2, *LONG[:80]])]
    assert answers[0] != answers[1]
    assert len(set(answers[0])) > 3


def test_sequences_join_and_leave_a_running_batch_and_answer_as_if_alone(
    model: WatchedModel,
) -> None:
    driver = Driver(model)
    ids = []
    for at, prompt in enumerate(PROMPTS):
        ids.append(driver.submit(prompt, max_tokens=8 + 7 * at))
        driver.step_until(ids[-1], 2)
    driver.finish()
    for at, (sequence_id, prompt) in enumerate(zip(ids, PROMPTS, strict=True)):
        assert driver.tokens[sequence_id] == answer_alone(model, prompt, max_tokens=8 + 7 * at)
    assert max(rows for rows, tokens in model.shapes if tokens == 1) > 3


def test_sequences_that_come_together_answer_as_if_alone(model: WatchedModel) -> None:
    driver = Driver(model)
    ids = [driver.submit(prompt) for prompt in PROMPTS]
    driver.finish()
    answers = [driver.tokens[sequence_id] for sequence_id in ids]
    assert answers == [answer_alone(model, prompt) for prompt in PROMPTS]


def test_more_sequences_than_rows_wait_and_are_all_answered_in_order(model: WatchedModel) -> None:
    driver = Driver(model, max_batch=2)
    ids = [driver.submit(prompt, max_tokens=3) for prompt in PROMPTS]
    driver.finish()
    assert driver.admitted == ids
    assert driver.waited == ids[2:]
    assert {len(driver.tokens[sequence_id]) for sequence_id in ids} == {3}
    assert max(rows for rows, _ in model.shapes) == 2


def test_a_sequence_for_which_there_is_room_has_not_waited(model: WatchedModel) -> None:
    driver = Driver(model, max_batch=2)
    first = driver.submit(PROMPTS[0], max_tokens=20)
    driver.step_until(first, 5)
    second = driver.submit(PROMPTS[1], max_tokens=20)
    driver.step_until(second, 1)
    third = driver.submit(PROMPTS[2], max_tokens=3)
    driver.cancel(first)
    driver.finish()
    assert driver.admitted == [first, second, third]
    assert driver.waited == [], "the place was free before the next step"


def test_a_prompt_is_computed_in_chunks_and_no_decoding_row_misses_a_step(
    model: WatchedModel,
) -> None:
    driver = Driver(model, chunk=64)
    running = [driver.submit(prompt, max_tokens=100) for prompt in PROMPTS[:2]]
    driver.step_until(running[1], 2)
    model.shapes.clear()
    long = driver.submit(LONG, max_tokens=5)
    while not driver.tokens[long]:
        stepped = {sequence_id for sequence_id, _ in pairs(driver.step())}
        assert stepped >= set(running)
    chunks = [tokens for _, tokens in model.shapes if tokens > 1]
    assert chunks == [64] * 6 + [15]
    driver.finish()
    assert driver.ended[long].stamps.prefill_chunks == 7
    assert driver.tokens[long] == answer_alone(model, LONG, max_tokens=5)


def test_a_sequence_alone_is_computed_in_large_chunks_until_another_comes(
    model: WatchedModel,
) -> None:
    driver = Driver(model, chunk=64, idle_chunk=128)
    driver.submit(LONG, max_tokens=2)
    driver.step()
    driver.submit(PROMPTS[0], max_tokens=20)
    driver.finish()
    chunks = [tokens for _, tokens in model.shapes if tokens > 1]
    assert chunks[0] == 128
    assert max(chunks[1:]) == 64


def test_prompts_share_the_step_between_them(model: WatchedModel) -> None:
    driver = Driver(model, chunk=256)
    for _ in range(4):
        driver.submit(LONG[:250], max_tokens=2)
    driver.finish()
    widest = max((rows * tokens, rows) for rows, tokens in model.shapes)
    assert widest == (256, 4)


def test_long_prompts_are_read_in_turns_each_by_itself(model: WatchedModel) -> None:
    driver = Driver(model, chunk=256, idle_chunk=256)
    ids = [driver.submit(LONG * 3, max_tokens=2) for _ in range(3)]
    for _ in range(6):
        driver.step()
    assert model.shapes == [(1, 256)] * 6
    driver.finish()
    assert {driver.ended[one].stamps.prefill_chunks for one in ids} == {5}
    expected = tuple(answer_alone(model, LONG * 3, max_tokens=2))
    assert {tuple(driver.tokens[one]) for one in ids} == {expected}


def test_a_short_prompt_does_not_wait_for_a_long_one(model: WatchedModel) -> None:
    driver = Driver(model)
    long, short = driver.submit(LONG * 3), driver.submit(PROMPTS[0])
    driver.step_until(short, 1)
    assert driver.tokens[long] == []


def test_a_short_prompt_has_its_first_token_before_a_long_one_moves_on(
    model: WatchedModel,
) -> None:
    driver = Driver(model, chunk=64)
    long = driver.submit(LONG * 3, max_tokens=1)
    driver.step()
    short = driver.submit(PROMPTS[2], max_tokens=3)
    model.shapes.clear()
    driver.step_until(short, 1)
    computed = sum(rows * tokens for rows, tokens in model.shapes if tokens > 1)
    assert computed == len(PROMPTS[2]) - 1, "only the short one moves, and nothing is padded"
    driver.finish()
    assert driver.tokens[short] == answer_alone(model, PROMPTS[2], max_tokens=3)
    assert driver.tokens[long] == answer_alone(model, LONG * 3, max_tokens=1)


def test_a_long_prompt_is_read_however_many_short_ones_come(model: WatchedModel) -> None:
    driver = Driver(model, chunk=64)
    long = driver.submit(LONG, max_tokens=1)
    for _ in range(40):
        if driver.tokens[long]:
            break
        driver.submit([5], max_tokens=1)
        driver.step()
    assert driver.tokens[long]


def test_running_rows_hold_their_pace_beside_a_prompt(model: WatchedModel) -> None:
    """Pieces are so long as the time between two tokens allows, by what they are measured to cost."""
    driver = Driver(model, chunk=256, token_gap_ns=40_000_000)
    running = driver.submit(PROMPTS[0], max_tokens=60)
    driver.step_until(running, 3)
    long = driver.submit(LONG * 3, max_tokens=1)
    model.ns_per_token = 1_000_000
    model.shapes.clear()
    driver.step_until(long, 1)
    chunks = [tokens for _, tokens in model.shapes if tokens > 1]
    assert chunks[0] > 80, "the first piece is not measured yet, or was cheap"
    assert all(16 <= tokens <= 45 for tokens in chunks[4:-1]), chunks


def drivers_at_every_stage(model: WatchedModel) -> Iterator[tuple[Driver, list[int], int]]:
    """Yield engines with two neighbours and a third sequence, which has had 0, 1, 2 … steps: queued, in the midst
    of its prompt, before its first token, decoding.
    """
    for steps in range(14):
        driver = Driver(model)
        neighbours = [driver.submit(prompt, max_tokens=30) for prompt in PROMPTS[:2]]
        driver.step_until(neighbours[1], 1)
        victim = driver.submit(LONG, max_tokens=30)
        for _ in range(steps):
            driver.step()
        yield driver, neighbours, victim


def test_a_cancelled_sequence_is_gone_by_the_next_step_and_the_others_go_on(
    model: WatchedModel,
) -> None:
    alone = [answer_alone(model, prompt, max_tokens=30) for prompt in PROMPTS[:2]]
    stages = set()
    for driver, neighbours, victim in drivers_at_every_stage(model):
        had = len(driver.tokens[victim])
        stages.add("decoding" if had else "prompt" if victim in driver.admitted else "queue")
        driver.cancel(victim)
        model.shapes.clear()
        driver.step()
        assert driver.ended[victim].reason == "cancelled"
        assert driver.ended[victim].stamps.output_tokens == had
        assert model.shapes == [(2, 1)], "only the neighbours are computed"
        driver.finish()
        assert [driver.tokens[sequence_id] for sequence_id in neighbours] == alone
    assert stages == {"queue", "prompt", "decoding"}


def test_a_sequence_that_waits_for_a_row_can_be_cancelled(model: WatchedModel) -> None:
    driver = Driver(model, max_batch=1)
    first, second, third = (driver.submit(prompt) for prompt in PROMPTS[:3])
    driver.step()
    driver.cancel(second)
    driver.finish()
    assert driver.ended[second].reason == "cancelled"
    assert driver.ended[second].stamps.admitted_ns is None
    assert driver.admitted == [first, third]


def test_cancelling_what_has_ended_or_never_was_does_nothing(model: WatchedModel) -> None:
    driver = Driver(model)
    done, running = driver.submit(PROMPTS[0], max_tokens=2), driver.submit(PROMPTS[1])
    driver.step_until(done, 2)
    for unknown in (done, 99):
        driver.cancel(unknown)
        driver.cancel(unknown)
    driver.finish()
    assert driver.ended[done].reason == "length"
    assert driver.tokens[running] == answer_alone(model, PROMPTS[1])
    assert set(driver.ended) == {done, running}


def test_the_only_sequence_can_be_cancelled_and_the_next_one_served(model: WatchedModel) -> None:
    driver = Driver(model)
    for steps in range(6):
        victim = driver.submit(PROMPTS[1])
        for _ in range(steps):
            driver.step()
        driver.cancel(victim)
        assert driver.engine.has_work
        driver.step()
        assert not driver.engine.has_work
    after = driver.submit(PROMPTS[1])
    driver.finish()
    assert driver.tokens[after] == answer_alone(model, PROMPTS[1])


def test_a_prompt_that_repeats_an_earlier_prompt_and_its_answer_is_served(
    model: WatchedModel,
) -> None:
    """Ends mlx-lm's own server for good, by way of its cache."""
    driver = Driver(model)
    first = driver.submit(PROMPTS[2])
    driver.finish()
    longer = PROMPTS[2] + driver.tokens[first]
    second, third = driver.submit(longer), driver.submit(longer)
    driver.finish()
    assert driver.tokens[second] == driver.tokens[third] == answer_alone(model, longer)


@pytest.mark.parametrize("prompt", [[5], [5, 6]])
def test_the_shortest_prompts_are_answered(model: WatchedModel, prompt: list[int]) -> None:
    driver = Driver(model)
    alone = driver.submit(prompt)
    driver.finish()
    driver.submit(PROMPTS[0])
    together = driver.submit(prompt)
    driver.finish()
    assert len(driver.tokens[alone]) == 12
    assert driver.tokens[together] == driver.tokens[alone]
    assert driver.ended[alone].stamps.prefill_chunks == len(prompt) - 1


@pytest.mark.parametrize(("prompt", "max_tokens"), [([], 5), ([1, 2], -1)])
def test_a_sequence_that_cannot_be_inserted_fails_alone(
    model: WatchedModel, prompt: list[int], max_tokens: int
) -> None:
    driver = Driver(model)
    running = driver.submit(PROMPTS[0])
    driver.step()
    refused, after = driver.submit(prompt, max_tokens), driver.submit(PROMPTS[1])
    driver.finish()
    assert (driver.ended[refused].reason, driver.ended[refused].detail) == ("failed", "ValueError")
    assert refused not in driver.admitted
    assert driver.tokens[running] == answer_alone(model, PROMPTS[0])
    assert driver.tokens[after] == answer_alone(model, PROMPTS[1])


def test_a_sequence_for_which_there_is_no_room_fails_alone(model: WatchedModel) -> None:
    driver = Driver(model)
    running = driver.submit(PROMPTS[0])
    driver.step_until(running, 1)
    model.is_full = True
    refused = driver.submit(PROMPTS[1])
    driver.step()
    model.is_full = False
    driver.finish()
    assert driver.ended[refused].detail == "MemoryError"
    assert driver.tokens[running] == answer_alone(model, PROMPTS[0])


@pytest.mark.parametrize("steps", range(6))
def test_a_failing_pass_loses_the_rows_in_it_and_neither_the_queue_nor_the_engine(
    model: WatchedModel, steps: int
) -> None:
    driver = Driver(model, max_batch=2)
    ids = [driver.submit(prompt) for prompt in PROMPTS[:4]]
    for _ in range(steps):
        driver.step()
    model.failure = RuntimeError("out of memory")
    driver.finish()
    for sequence_id in ids[:2]:
        assert driver.ended[sequence_id].reason == "lost"
        assert driver.ended[sequence_id].detail == "RuntimeError"
    for sequence_id, prompt in zip(ids[2:], PROMPTS[2:4], strict=True):
        assert driver.tokens[sequence_id] == answer_alone(model, prompt)


def test_an_answer_has_exactly_the_tokens_that_were_asked_for(model: WatchedModel) -> None:
    driver = Driver(model)
    ids = {driver.submit(PROMPTS[1], max_tokens=count): count for count in (1, 2, 3, 20)}
    driver.finish()
    for sequence_id, count in ids.items():
        assert len(driver.tokens[sequence_id]) == count
        assert driver.ended[sequence_id].reason == "length"
        assert driver.ended[sequence_id].stamps.output_tokens == count


def test_an_end_token_ends_the_answer_and_is_counted(model: WatchedModel) -> None:
    whole = answer_alone(model, PROMPTS[1], max_tokens=20)
    at = next(at for at in range(3, 20) if whole[at] not in whole[:at])
    driver = Driver(model)
    ended = driver.submit(PROMPTS[1], max_tokens=20, end_token_ids=[255, whole[at]])
    other = driver.submit(PROMPTS[1], max_tokens=20)
    driver.finish()
    assert driver.tokens[ended] == whole[: at + 1]
    assert driver.ended[ended].reason == "stop"
    assert driver.ended[ended].stamps.output_tokens == at + 1
    assert driver.tokens[other] == whole


def test_an_end_token_that_is_also_the_last_one_allowed_says_stop(model: WatchedModel) -> None:
    whole = answer_alone(model, PROMPTS[1], max_tokens=20)
    driver = Driver(model)
    ended = driver.submit(PROMPTS[1], max_tokens=1, end_token_ids=whole[:1])
    driver.finish()
    assert driver.ended[ended].reason == "stop"


def test_the_engine_s_record_of_a_sequence_is_in_order_and_complete(model: WatchedModel) -> None:
    driver = Driver(model, max_batch=3, chunk=64)
    ids = [driver.submit(prompt, max_tokens=10) for prompt in (LONG, *PROMPTS[:4])]
    driver.finish()
    for sequence_id, prompt in zip(ids, (LONG, *PROMPTS[:4]), strict=True):
        stamps = driver.ended[sequence_id].stamps
        assert stamps.admitted_ns
        assert stamps.first_token_ns
        assert stamps.last_token_ns
        assert stamps.received_ns <= stamps.admitted_ns < stamps.first_token_ns
        decode_ns = stamps.last_token_ns - stamps.first_token_ns
        assert 0 < stamps.longest_gap_ns <= decode_ns <= 9 * stamps.longest_gap_ns
        assert stamps.prompt_tokens == len(prompt)
        assert stamps.output_tokens == 10
        assert 1 <= stamps.batch_width_max <= 3
        assert 10 <= stamps.batch_width_sum <= 30


def test_the_width_of_the_batch_is_recorded(model: WatchedModel) -> None:
    driver = Driver(model)
    pair = [driver.submit(PROMPTS[0], max_tokens=5) for _ in range(2)]
    driver.finish()
    alone = driver.submit(PROMPTS[0], max_tokens=5)
    driver.finish()
    widths = [
        (driver.ended[one].stamps.batch_width_max, driver.ended[one].stamps.batch_width_sum)
        for one in (*pair, alone)
    ]
    assert widths == [(2, 10), (2, 10), (1, 5)]


def test_a_stall_beside_another_s_prompt_says_so(model: WatchedModel) -> None:
    driver = Driver(model, chunk=64)
    running = driver.submit(PROMPTS[0], max_tokens=60)
    driver.step_until(running, 5)
    driver.paused_ns += 400_000_000
    driver.step()
    driver.submit(LONG, max_tokens=2)
    driver.paused_ns += 400_000_000
    driver.step()
    driver.finish()
    stalls = driver.ended[running].stamps.stalls
    assert [stall.beside_prefill for stall in stalls] == [False, True]


def seeded(seed: int | None, temperature: float = 1.0) -> SamplingParameters:
    return SamplingParameters(temperature, top_p=0.95, seed=seed)


def test_a_seed_draws_the_same_answer_alone_and_in_any_company(model: WatchedModel) -> None:
    alone = answer_alone(model, PROMPTS[1], sampling=seeded(11), max_tokens=20)
    driver = Driver(model)
    for sampling in (seeded(None), seeded(11), seeded(7, 0.5), SamplingParameters()):
        driver.submit(PROMPTS[0], 30, sampling=sampling)
    driver.step()
    ids = [driver.submit(PROMPTS[1], 20, sampling=seeded(11)) for _ in range(2)]
    driver.finish()
    assert [driver.tokens[sequence_id] for sequence_id in ids] == [alone, alone]


def test_different_seeds_draw_different_answers(model: WatchedModel) -> None:
    answers = {
        tuple(answer_alone(model, PROMPTS[1], sampling=seeded(seed), max_tokens=20))
        for seed in range(5)
    }
    assert len(answers) == 5


def test_an_answer_without_a_seed_differs_from_time_to_time(model: WatchedModel) -> None:
    driver = Driver(model)
    ids = [driver.submit(PROMPTS[1], 20, sampling=seeded(None)) for _ in range(4)]
    driver.finish()
    assert len({tuple(driver.tokens[sequence_id]) for sequence_id in ids}) == 4


class StubbornRunner(Runner):
    """Can't let go of a row."""

    def remove(self, sequence_id: int) -> None:
        raise RuntimeError("stuck")


def test_a_row_that_can_not_be_taken_out_costs_the_batch_and_not_the_engine(
    model: WatchedModel,
) -> None:
    engine = Engine(StubbornRunner(model, 4), Scheduler(Limits(4, 64, 64)), BlasThreads(0))
    for sequence_id in (1, 2):
        engine.handle(Submit(sequence_id, [5, 6, 7], 100, [], SamplingParameters()))
    engine.step()
    engine.handle(Cancel(1))
    ended = {one.sequence_id: one.reason for one in engine.step().ended}
    assert ended == {1: "cancelled", 2: "lost"}
    engine.handle(Submit(3, [5, 6, 7], 2, [], SamplingParameters(), attempts=1))
    while engine.has_work:
        last = engine.step()
    assert [(one.sequence_id, one.reason) for one in last.ended] == [(3, "length")]


@pytest.mark.parametrize("steps", range(5))
def test_who_is_cancelled_before_anything_of_its_prompt_is_read_costs_nobody_the_batch(
    any_model: WatchedModel, steps: int
) -> None:
    """Prompts stand still while another one's first token is made: they are in the batch then, with nothing in it."""
    driver = Driver(any_model, prefix_cache_bytes=1 << 20)
    first = driver.submit([3, 1, 4, 1, 5], 12)
    driver.step()
    others = [driver.submit([9, 2, 6, at], 12) for at in range(2)]
    for _ in range(steps):
        driver.step()
    driver.cancel(others[0])
    driver.finish()
    assert driver.ended[others[0]].reason == "cancelled"
    assert {driver.ended[one].reason for one in (first, others[1])} == {"length"}
    assert {len(driver.tokens[one]) for one in (first, others[1])} == {12}
