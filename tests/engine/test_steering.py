"""Bias, penalties, XTC, and the least length of an answer, against the same rules written plainly in numpy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from mlx_manager.mlx_server.engine.messages import SamplingParameters
from mlx_manager.mlx_server.engine.sampling import (
    SteeredSampler,
    count_penalised,
    filtered,
    repetition_penalised,
    sampler_for,
    without_top_choices,
)
from tests.engine.driving import Driver, answer_alone
from tests.engine.models import VOCABULARY, WatchedModel

Floats = npt.NDArray[np.float64]
PROMPT = [(31 * at * at + 5) % VOCABULARY for at in range(20)]
OTHERS = [[(17 * row + 7 * at * at) % VOCABULARY for at in range(8 + 5 * row)] for row in range(7)]


def logits(seed: int = 0, rows: int = 1, spread: float = 3.0) -> Floats:
    drawn: Floats = np.random.default_rng(seed).normal(size=(rows, VOCABULARY)) * spread
    return drawn.astype(np.float32).astype(np.float64)


def on_mlx(given: Floats) -> mx.array:
    return mx.array(given.astype(np.float32))


def test_a_seen_token_is_penalised_by_the_factor_that_transformers_has() -> None:
    given, seen = logits(), [3, 5, 5, 250]
    expected = given.copy()
    for token_id in set(seen):
        score = expected[0, token_id]
        expected[0, token_id] = score * 1.7 if score < 0 else score / 1.7
    is_seen = np.isin(np.arange(VOCABULARY), seen)
    result = repetition_penalised(on_mlx(given), mx.array(is_seen), 1.7)
    np.testing.assert_allclose(np.array(result), expected, rtol=1e-6)


def test_presence_and_frequency_are_subtracted_as_openai_has_it() -> None:
    given, counts = logits(), np.zeros(VOCABULARY)
    counts[[4, 9]] = 1, 3
    expected = given - counts * 0.5 - (counts > 0) * 1.25
    result = count_penalised(on_mlx(given), mx.array(counts.astype(np.float32)), 1.25, 0.5)
    np.testing.assert_allclose(np.array(result), expected, atol=1e-5)


@pytest.mark.parametrize("kept", [(), (0,)])
def test_of_the_top_choices_only_the_least_likely_stays(kept: tuple[int, ...]) -> None:
    given = np.log(np.array([[0.4, 0.3, 0.15, 0.1, 0.05], [0.9, 0.04, 0.03, 0.02, 0.01]]))
    token_ids = mx.broadcast_to(mx.arange(5), given.shape)
    result = np.array(without_top_choices(on_mlx(given), token_ids, 0.12, kept))
    is_left = [0 in kept, False, True, True, True]
    assert np.isfinite(result).tolist() == [is_left, [True] * 5]
    np.testing.assert_allclose(result[0, 2:], given[0, 2:], rtol=1e-6)


def test_xtc_comes_as_often_as_it_was_asked_for() -> None:
    row = np.log(np.array([[0.6, 0.4]]))
    sampler = sampler_for(SamplingParameters(1.0, xtc_probability=0.5, xtc_threshold=0.1))
    draws = np.array(sampler(on_mlx(np.tile(row, (20_000, 1)))))
    # Half of the time the first is excluded and the second certain.
    np.testing.assert_allclose((draws == 1).mean(), 0.5 + 0.5 * 0.4, atol=0.02)


def steered(prompt: list[int], ends: list[int] | None = None, **asked: Any) -> SteeredSampler:
    sampler = sampler_for(SamplingParameters(**asked), prompt, ends or [])
    assert isinstance(sampler, SteeredSampler)
    return sampler


def test_a_row_draws_what_the_rules_say_for_its_whole_history() -> None:
    prompt = [1, 2, 3, 2]
    asked = SamplingParameters(
        repetition_penalty=1.4,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        logit_bias=((7, 1.5), (9, -4.0)),
    )
    sampler = sampler_for(asked, prompt)
    assert isinstance(sampler, SteeredSampler)
    made = list[int]()
    for _ in range(40):
        # The same logits each time, close together: without penalties the answer would be one token again and again.
        given = logits(spread=1.0)
        [token] = np.array(draw_one(sampler, given)).tolist()
        assert token == expected_choice(given, asked, prompt, made)
        made.append(token)
    assert len(set(made)) > 5


def draw_one(sampler: SteeredSampler, given: Floats) -> mx.array:
    """Draw as mlx-lm does it: the logits are shown first, the normalised ones sampled."""
    raw = sampler.keep_logits(mx.array([0]), on_mlx(given))
    return sampler(raw - mx.logsumexp(raw, axis=-1, keepdims=True))


def expected_choice(
    given: Floats, asked: SamplingParameters, prompt: list[int], made: list[int]
) -> int:
    scores = given[0].copy()
    for token_id in {*prompt, *made}:
        factor = asked.repetition_penalty
        scores[token_id] *= factor if scores[token_id] < 0 else 1 / factor
    for token_id, bias in asked.logit_bias:
        scores[token_id] += bias
    for token_id, count in Counter(made).items():
        scores[token_id] -= asked.presence_penalty + asked.frequency_penalty * count
    return int(scores.argmax())


def test_what_was_given_is_not_changed() -> None:
    given = on_mlx(logits())
    before = np.array(given)
    sampler = steered(PROMPT, [3], repetition_penalty=1.5, logit_bias=((5, 9.0),), min_tokens=4)
    for _ in range(3):
        sampler.keep_logits(mx.array([0]), given)
        mx.eval(sampler(given))
    np.testing.assert_array_equal(np.array(given), before)


def test_no_end_is_drawn_before_the_least_length() -> None:
    row = logits(spread=0.1)
    row[0, [4, 6]] += 50
    sampler = steered([1], [4, 6], min_tokens=3)
    draws = [sampler(on_mlx(row)).item() for _ in range(5)]
    assert not {4, 6} & set(draws[:3])
    assert set(draws[3:]) <= {4, 6}


def test_a_row_that_only_draws_alike_shares_its_sampler() -> None:
    plain = sampler_for(SamplingParameters(0.7, 0.9), [1, 2], [3])
    assert sampler_for(SamplingParameters(0.7, 0.9), [4], [5]) is plain
    assert sampler_for(SamplingParameters(0.7, 0.9, xtc_probability=0.5), [4], [5]) is not plain
    # Nothing to hold back when there is no end.
    assert sampler_for(SamplingParameters(0.7, 0.9, min_tokens=5), [4], []) is plain


CONTROLS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.5},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.8},
    "bias": {"logit_bias": ((5, 3.0), (200, -100.0))},
    "xtc": {"xtc_probability": 0.6, "xtc_threshold": 0.05},
    "all": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "logit_bias": ((5, 3.0),),
        "xtc_probability": 0.3,
    },
}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_seeded_answer_is_the_same_alone_and_among_seven_others(
    model: WatchedModel, control: str
) -> None:
    asked = sampling(seed=11, **CONTROLS[control])
    alone = answer_alone(model, PROMPT, max_tokens=24, sampling=asked)
    assert alone != answer_alone(model, PROMPT, max_tokens=24, sampling=sampling(seed=11))
    driver = Driver(model)
    crowd = [*CONTROLS.values(), {}]
    for prompt, others in zip(OTHERS, crowd, strict=True):
        driver.submit(prompt, 30, sampling=sampling(seed=None, **others), top_logprobs=2)
        driver.step()
    sequence_id = driver.submit(PROMPT, 24, sampling=asked, top_logprobs=3)
    driver.finish()
    assert driver.tokens[sequence_id] == alone
    assert driver.ended[sequence_id].stamps.batch_width_max == 8


def sampling(seed: int | None, **asked: Any) -> SamplingParameters:
    return SamplingParameters(1.0, top_p=0.95, seed=seed, **asked)


def test_a_neighbour_with_controls_changes_no_plain_answer(model: WatchedModel) -> None:
    driver = Driver(model)
    driver.submit(OTHERS[0], 30, sampling=SamplingParameters(**CONTROLS["all"]))
    plain = driver.submit(PROMPT, 20)
    driver.finish()
    assert driver.tokens[plain] == answer_alone(model, PROMPT, max_tokens=20)


def test_the_repetition_penalty_is_of_the_model_s_logits(model: WatchedModel) -> None:
    """Logits and log-probabilities differ by a constant, and a factor tells them apart."""
    asked = SamplingParameters(repetition_penalty=1.8)
    [drawn] = answer_alone(model, PROMPT, max_tokens=1, sampling=asked)
    last = np.array(model(mx.array([PROMPT]))[0, -1]).astype(np.float64)
    assert drawn == expected_choice(last[None], asked, PROMPT, [])


def distribution(model: WatchedModel, tokens: list[int]) -> Floats:
    last = np.array(model(mx.array([tokens]))[0, -1]).astype(np.float64)
    normalised: Floats = last - np.log(np.exp(last).sum())
    return normalised


@pytest.mark.parametrize("control", ["plain", *CONTROLS])
def test_logprobs_are_of_the_model_s_own_distribution(model: WatchedModel, control: str) -> None:
    asked = sampling(seed=3, **CONTROLS.get(control, {}))
    driver = Driver(model)
    driver.submit(OTHERS[1], 30)
    sequence_id = driver.submit(PROMPT, 8, sampling=asked, top_logprobs=4)
    driver.finish()
    tokens, found = driver.tokens[sequence_id], driver.logprobs[sequence_id]
    assert len(found) == len(tokens) == 8
    for at, (token, one) in enumerate(zip(tokens, found, strict=True)):
        expected = distribution(model, PROMPT + tokens[:at])
        assert one.logprob == pytest.approx(expected[token], abs=1e-3)
        assert one.top_token_ids == np.argsort(-expected)[:4].tolist()
        np.testing.assert_allclose(one.top_logprobs, np.sort(expected)[::-1][:4], atol=1e-3)


def test_logprobs_come_only_to_those_who_asked_and_as_many_as_they_asked_for(
    model: WatchedModel,
) -> None:
    driver = Driver(model)
    counts: list[int | None] = [None, 0, 5, VOCABULARY]
    ids = [driver.submit(PROMPT, 6, top_logprobs=count) for count in counts]
    driver.finish()
    assert set(driver.logprobs) == set(ids[1:])
    for sequence_id, count in zip(ids[1:], counts[1:], strict=True):
        found = driver.logprobs[sequence_id]
        assert [len(one.top_token_ids) for one in found] == [count] * 6
        assert [len(one.top_logprobs) for one in found] == [count] * 6
    whole = driver.logprobs[ids[-1]][0]
    assert np.exp(whole.top_logprobs).sum() == pytest.approx(1, abs=1e-4)
    assert sorted(whole.top_token_ids) == list(range(VOCABULARY))


def test_a_cancelled_sequence_leaves_no_logprobs_behind(model: WatchedModel) -> None:
    driver = Driver(model)
    gone = driver.submit(PROMPT, 50, top_logprobs=1)
    driver.step_until(gone, 3)
    driver.cancel(gone)
    stays = driver.submit(OTHERS[0], 4, top_logprobs=1)
    driver.finish()
    assert len(driver.logprobs[gone]) == 3
    assert len(driver.logprobs[stays]) == 4


@pytest.mark.parametrize("top_k", [0, 20])
def test_filters_work_on_logits_as_on_logprobs(top_k: int) -> None:
    given = on_mlx(logits(rows=3))
    parameters = SamplingParameters(0.8, top_p=0.9, top_k=top_k, min_p=0.02)
    (of_logits, ids), (of_logprobs, same_ids) = (
        filtered(one, parameters)
        for one in (given, given - mx.logsumexp(given, axis=-1, keepdims=True))
    )
    np.testing.assert_array_equal(np.array(ids), np.array(same_ids))
    np.testing.assert_allclose(
        np.array(mx.softmax(of_logits, axis=-1)),
        np.array(mx.softmax(of_logprobs, axis=-1)),
        atol=1e-5,
    )


@pytest.mark.parametrize("seed", [None, 5])
def test_with_top_k_too_an_end_of_the_answer_is_not_excluded(seed: int | None) -> None:
    row = np.log(np.array([[0.05, 0.05, 0.3, 0.35, 0.25]]))
    asked = SamplingParameters(1.0, top_k=3, seed=seed, xtc_probability=1.0, xtc_threshold=0.1)
    sampler = sampler_for(asked, end_token_ids=[3])
    draws = {sampler(on_mlx(row)).item() for _ in range(100)}
    # 2 and 3 are the top choices; 4 is the least likely of those above the threshold.
    assert draws == {3, 4}
