"""Which tokens can be drawn, against the same rules written plainly in numpy."""

from __future__ import annotations

import io

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from mlx_manager.mlx_server.engine.messages import SamplingParameters
from mlx_manager.mlx_server.engine.sampling import (
    MANY_LOGITS,
    SeededSampler,
    draw_together,
    filtered,
    greedy,
    sampler_for,
)

Floats = npt.NDArray[np.float64]
ROWS, VOCABULARY = 5, 50


def logprobs(seed: int = 0, spread: float = 3.0) -> Floats:
    logits = np.random.default_rng(seed).normal(size=(ROWS, VOCABULARY)) * spread
    normalised: Floats = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return normalised


def expected_probabilities(row: Floats, parameters: SamplingParameters) -> Floats:
    """Return the distribution to draw from: temperature, then top_k, then top_p, then min_p."""
    weights = np.exp(row / parameters.temperature)
    probabilities: Floats = weights / weights.sum()
    if parameters.top_k:
        probabilities[np.argsort(-probabilities)[parameters.top_k :]] = 0
    if parameters.top_p < 1:
        probabilities /= probabilities.sum()
        kept_sum = 0.0
        for token in np.argsort(-probabilities):
            if kept_sum >= parameters.top_p and kept_sum > 0:
                probabilities[token] = 0
            kept_sum += probabilities[token]
    probabilities[probabilities < parameters.min_p * probabilities.max()] = 0
    normalised: Floats = probabilities / probabilities.sum()
    return normalised


def drawn_from(parameters: SamplingParameters, given: Floats) -> Floats:
    """Return the distribution that our sampler draws from."""
    logits, token_ids = filtered(mx.array(given.astype(np.float32)), parameters)
    probabilities = np.zeros_like(given)
    drawn = np.array(mx.softmax(logits, axis=-1)).astype(np.float64)
    np.put_along_axis(probabilities, np.array(token_ids), drawn, axis=-1)
    return probabilities


@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(1.0),
        SamplingParameters(0.3),
        SamplingParameters(1.7),
        SamplingParameters(1.0, top_k=1),
        SamplingParameters(1.0, top_k=7),
        SamplingParameters(1.0, top_k=VOCABULARY),
        SamplingParameters(1.0, top_k=10 * VOCABULARY),
        SamplingParameters(1.0, top_p=0.9),
        SamplingParameters(1.0, top_p=0.1),
        SamplingParameters(1.0, min_p=0.05),
        SamplingParameters(1.0, min_p=1.0),
        SamplingParameters(0.6, top_p=0.95, top_k=20),
        SamplingParameters(2.0, top_p=0.8, top_k=10, min_p=0.3),
    ],
)
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_tokens_are_drawn_from_the_distribution_that_was_asked_for(
    parameters: SamplingParameters, spread: float
) -> None:
    given = logprobs(spread=spread)
    expected = np.stack([expected_probabilities(row, parameters) for row in given])
    np.testing.assert_allclose(drawn_from(parameters, given), expected, atol=2e-5)


@pytest.mark.parametrize("top_p", [0.0, 1e-12])
def test_a_top_p_of_nothing_keeps_the_most_likely_token(top_p: float) -> None:
    given = logprobs()
    probabilities = drawn_from(SamplingParameters(1.0, top_p=top_p), given)
    assert (probabilities.argmax(axis=-1) == given.argmax(axis=-1)).all()
    assert (np.count_nonzero(probabilities, axis=-1) == 1).all()


@pytest.mark.parametrize("spread", [0.0001, 1.0, 8.0], ids=["flat", "broad", "narrow"])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 0.9999])
def test_a_large_vocabulary_is_cut_where_all_of_it_in_order_would_be(
    spread: float, top_p: float
) -> None:
    """Whether the tokens that are picked first are enough (of a narrow distribution) or not (of a flat one)."""
    rows = np.random.default_rng(5).normal(size=(4, MANY_LOGITS // 4)) * spread
    kept = np.isfinite(np.array(filtered(mx.array(rows.astype(np.float32)), of_top_p(top_p))[0]))
    for row, is_kept in zip(rows, kept, strict=True):
        weights = np.exp(row) / np.exp(row).sum()
        assert weights[is_kept].min() >= weights[~is_kept].max(initial=0)
        # In float32 a sum of thousands of probabilities is known to some digits only.
        assert weights[is_kept].sum() >= top_p - 1e-4
        assert weights[is_kept].sum() - weights[is_kept].min() < top_p + 1e-4


def of_top_p(top_p: float) -> SamplingParameters:
    return SamplingParameters(1.0, top_p=top_p)


def test_a_row_is_drawn_alike_alone_and_in_a_large_batch() -> None:
    rows = np.random.default_rng(6).normal(size=(8, MANY_LOGITS // 4)).astype(np.float32) * 2
    together = np.array(filtered(mx.array(rows), of_top_p(0.9))[0])
    for row, expected in zip(rows, together, strict=True):
        [alone] = np.array(filtered(mx.array(row[None]), of_top_p(0.9))[0])
        np.testing.assert_array_equal(alone, expected)


def test_draws_come_in_the_proportions_of_the_distribution() -> None:
    row = np.log(np.array([0.5, 0.25, 0.15, 0.1]))
    sampler = sampler_for(SamplingParameters(1.0, top_k=3))
    draws = np.array(sampler(mx.array(np.tile(row, (20_000, 1)).astype(np.float32))))
    shares = np.bincount(draws, minlength=4) / len(draws)
    np.testing.assert_allclose(shares, [0.5556, 0.2778, 0.1667, 0], atol=0.02)


@pytest.mark.parametrize("seed", [None, 3])
def test_what_top_k_leaves_is_drawn_by_its_own_ids(seed: int | None) -> None:
    given = logprobs(spread=1.0)
    sampler = sampler_for(SamplingParameters(1.0, top_k=4, top_p=0.999, seed=seed))
    likeliest = np.argsort(-given, axis=-1)[:, :4]
    draws = np.stack([np.array(sampler(mx.array(given.astype(np.float32)))) for _ in range(200)])
    for row in range(ROWS):
        assert set(draws[:, row]) == set(likeliest[row])


def test_of_equally_likely_tokens_no_more_than_top_k_are_left() -> None:
    logits, token_ids = filtered(mx.zeros((2, VOCABULARY)), SamplingParameters(1.0, top_k=3))
    assert logits.shape == token_ids.shape == (2, 3)


def test_temperature_zero_takes_the_most_likely_token() -> None:
    given = logprobs()
    sampler = sampler_for(SamplingParameters(0.0, top_p=0.5, seed=1))
    chosen = np.array(sampler(mx.array(given.astype(np.float32))))
    assert (chosen == given.argmax(axis=-1)).all()


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-300, 5e-324])
def test_a_temperature_near_zero_takes_the_most_likely_token_too(temperature: float) -> None:
    given = logprobs(spread=0.01)
    sampler = sampler_for(SamplingParameters(temperature))
    chosen = np.array(sampler(mx.array(given.astype(np.float32))))
    assert (chosen == given.argmax(axis=-1)).all()


def test_rows_with_equal_parameters_share_one_sampler() -> None:
    first = sampler_for(SamplingParameters(0.7, 0.9, 40, 0.05))
    assert sampler_for(SamplingParameters(0.7, 0.9, 40, 0.05)) is first
    assert sampler_for(SamplingParameters(0.7, 0.9, 41, 0.05)) is not first
    assert sampler_for(SamplingParameters()) is greedy
    assert sampler_for(SamplingParameters(0.0, 0.5, seed=3)) is greedy


def test_seeded_rows_never_share_a_sampler() -> None:
    seeded = SamplingParameters(0.7, seed=1)
    assert sampler_for(seeded) is not sampler_for(seeded)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**63 - 1, -(2**63), 2**64 + 5])
def test_every_seed_gives_its_own_repeatable_draws(seed: int) -> None:
    given = mx.zeros((1, 1000))
    first, second = (sampler_for(SamplingParameters(1.0, seed=seed)) for _ in range(2))
    other = sampler_for(SamplingParameters(1.0, seed=seed + 1))
    draws = [first(given).item() for _ in range(8)]
    assert draws == [second(given).item() for _ in range(8)]
    assert draws != [other(given).item() for _ in range(8)]
    assert len(set(draws)) > 1


def test_rows_that_are_drawn_together_get_what_each_is_drawn_by_itself() -> None:
    kinds = [
        SamplingParameters(temperature=0.8, seed=1),
        SamplingParameters(temperature=0),
        SamplingParameters(temperature=0.8, seed=2),
        SamplingParameters(temperature=0.9, top_k=7, seed=1),
        SamplingParameters(temperature=0, logit_bias=((3, 100.0),)),
        SamplingParameters(temperature=0.8, seed=1),
        SamplingParameters(temperature=0),
        SamplingParameters(temperature=0.8, top_p=0.7, xtc_probability=0.5, seed=9),
    ]
    together, alone = ([sampler_for(kind) for kind in kinds] for _ in range(2))
    for step in range(20):
        logits = mx.random.normal((len(kinds), 500), key=mx.random.key(step)) * 3
        logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        expected = [draw(logits[at : at + 1]).item() for at, draw in enumerate(alone)]
        assert draw_together(together, logits).tolist() == expected


def test_a_seed_and_the_next_one_have_no_keys_in_common() -> None:
    drawn = [SeededSampler(SamplingParameters(temperature=1), seed) for seed in range(50)]
    keys = [one.next_key() for one in drawn for _ in range(200)]
    assert len(set(keys)) == len(keys)


FILTERS = {
    "temperature": {},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.02},
    "top_k": {"top_k": 40, "top_p": 0.8, "min_p": 0.01},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.05, "top_p": 0.95},
}


def asked_by(row: int, filters: dict[str, float]) -> SamplingParameters:
    """Parameters that no other row has."""
    own = {
        name: value * (1 - row / 200) if name in ("top_p", "min_p") else value
        for name, value in filters.items()
    }
    return SamplingParameters(0.4 + row / 29, seed=row, **own)  # type: ignore[arg-type]


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("vocabulary", [512, MANY_LOGITS // 16])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_rows_that_all_want_something_else_are_drawn_in_one_call_as_each_by_itself(
    filters: dict[str, float], vocabulary: int, dtype: mx.Dtype
) -> None:
    """Bit by bit: the logits that are left, and the token."""
    parameters = [asked_by(row, filters) for row in range(32)]
    assert len({one.temperature for one in parameters}) == 32
    rows = np.random.default_rng(7).normal(size=(32, vocabulary)) * 4
    logits = mx.array(rows.astype(np.float32)).astype(dtype)
    left, token_ids = filtered(logits, *parameters)
    for row, one in enumerate(parameters):
        alone, its_ids = filtered(logits[row : row + 1], one)
        assert mx.array_equal(left[row : row + 1], alone).item()
        assert mx.array_equal(token_ids[row : row + 1], its_ids).item()
    for _ in range(3):
        samplers = [sampler_for(one, (), (3,)) for one in parameters]
        together = draw_together(samplers, logits).tolist()
        by_itself = [
            sampler_for(one, (), (3,))(logits[row : row + 1]).item()
            for row, one in enumerate(parameters)
        ]
        assert together == by_itself
        assert len(set(together)) > 8


def operations(result: mx.array) -> int:
    """How many operations a result that isn't computed yet will take."""
    graph = io.StringIO()
    mx.export_to_dot(graph, result)
    return graph.getvalue().count("shape=rectangle")


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_thirty_two_rows_that_want_something_else_take_as_many_operations_as_two(
    filters: dict[str, float],
) -> None:
    def taken(rows: int) -> int:
        samplers = [sampler_for(asked_by(row, filters)) for row in range(rows)]
        return operations(draw_together(samplers, mx.zeros((rows, 512))))

    assert taken(32) == taken(2) > 0


def test_rows_with_and_without_filters_seeds_and_temperature_keep_their_places() -> None:
    mixed = [asked_by(row, list(FILTERS.values())[row % 5]) for row in range(20)]
    mixed += [SamplingParameters(), SamplingParameters(0.9), SamplingParameters(0.3, top_k=1)]
    rows = np.random.default_rng(8).normal(size=(len(mixed), VOCABULARY)).astype(np.float32) * 9
    together = np.array(draw_together([sampler_for(one) for one in mixed], mx.array(rows)))
    for row, one in enumerate(mixed):
        if one.seed is not None or one.temperature == 0 or one.top_k == 1:
            assert together[row] == sampler_for(one)(mx.array(rows[row : row + 1])).item()


def test_unseeded_rows_of_one_call_draw_by_their_own_temperatures() -> None:
    cold, hot = SamplingParameters(0.01), SamplingParameters(1.0)
    logits = mx.array(np.log(np.array([[0.6, 0.4]] * 2)).astype(np.float32))
    drawn = [draw_together([sampler_for(cold), sampler_for(hot)], logits) for _ in range(300)]
    cold_draws, hot_draws = np.array(mx.stack(drawn)).T
    assert cold_draws.max() == 0
    assert 0.3 < hot_draws.mean() < 0.5
