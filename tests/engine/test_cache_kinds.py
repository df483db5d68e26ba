"""Every kind of layer: what a model computes from a stored beginning is what it computes from the first token."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_manager.mlx_server.engine.prefix_cache import PrefixCache
from mlx_manager.mlx_server.engine.row_state import caches_for, kinds_of, state_of
from mlx_manager.mlx_server.engine.snapshots import MOST_SNAPSHOTS, snapshot_places
from tests.engine.driving import Driver, answer_alone
from tests.engine.models import VOCABULARY, WITH_STATES, WatchedModel

LOTS = 1 << 30
LENGTH = 600
PROMPT = [(31 * at * at + 7 * at + 5) % VOCABULARY for at in range(LENGTH)]


@pytest.fixture(params=WITH_STATES)
def stateful(request: pytest.FixtureRequest, models: dict[str, Any]) -> WatchedModel:
    return WatchedModel(models[request.param])


def turned(shared: int, rest: int = 40) -> list[int]:
    """A prompt that begins like `PROMPT` and goes on in its own way."""
    return PROMPT[:shared] + [(PROMPT[shared] + 1 + 13 * at) % VOCABULARY for at in range(rest)]


def read(model: Any, caches: list[Any], tokens: list[int], piece: int = 200) -> mx.array:
    """Have a model read tokens, in pieces, and return the logits behind each of the last piece."""
    logits = mx.zeros(())
    for at in range(0, len(tokens), piece):
        logits = model(mx.array([tokens[at : at + piece]]), cache=caches)
        mx.eval(logits, [cache.state for cache in caches])
    return logits


def cached(driver: Driver, sequence_id: int) -> int:
    return driver.ended[sequence_id].stamps.cached_tokens


def reason(driver: Driver, sequence_id: int) -> str | None:
    return driver.ended[sequence_id].stamps.cache_miss_reason


@pytest.mark.parametrize("at", [0, 100, 300, LENGTH - 5])
def test_what_these_models_say_depends_on_each_token_of_their_prompt(
    any_model: WatchedModel, at: int
) -> None:
    """Or equal logits would say nothing of what was stored."""
    other = list(PROMPT)
    other[at] = (other[at] + 9) % VOCABULARY
    logits, others = (
        read(any_model, any_model.make_cache(), prompt)[:, -1] for prompt in (PROMPT, other)
    )
    assert not mx.allclose(logits, others, rtol=0, atol=1e-3).item()


@pytest.mark.parametrize("length", [1, 47, 48, 49, 256])
def test_logits_from_a_stored_beginning_are_those_of_a_row_that_has_read_it_itself(
    any_model: WatchedModel, length: int
) -> None:
    own = any_model.make_cache()
    read(any_model, own, PROMPT[:length])
    kinds = kinds_of(any_model)
    assert kinds.is_supported
    prefixes = PrefixCache(LOTS, needs_states=kinds.needs_states)
    prefixes.store(PROMPT[:length], state_of(own, length))
    match = prefixes.match(PROMPT)
    assert match.tokens == length
    expected = read(any_model, own, PROMPT[length:])
    # Twice: going on from what is stored doesn't change it.
    for _ in range(2):
        found = read(any_model, caches_for(any_model, prefixes.match(PROMPT).row), PROMPT[length:])
        assert mx.abs(found - expected).max().item() == 0.0
    whole = read(any_model, any_model.make_cache(), PROMPT, piece=LENGTH)[:, -1]
    assert mx.allclose(whole, expected[:, -1], rtol=1e-3, atol=1e-3).item()


def test_an_exact_repeat_has_the_answer_and_log_probabilities_of_the_first_time(
    any_model: WatchedModel,
) -> None:
    driver = Driver(any_model, prefix_cache_bytes=LOTS)
    cold = driver.submit(PROMPT, 8, top_logprobs=3)
    driver.finish()
    any_model.shapes.clear()
    warm = driver.submit(PROMPT, 8, top_logprobs=3)
    driver.finish()
    assert driver.tokens[warm] == driver.tokens[cold]
    assert cached(driver, warm) == LENGTH - 1
    assert reason(driver, warm) is None
    assert sum(tokens for _, tokens in any_model.shapes) <= 1 + 8
    for one, other in zip(driver.logprobs[cold], driver.logprobs[warm], strict=True):
        assert (one.logprob, one.top_logprobs) == (other.logprob, other.top_logprobs)
        assert one.top_token_ids == other.top_token_ids


def test_a_conversation_goes_on_from_its_last_answer(any_model: WatchedModel) -> None:
    driver, turns = Driver(any_model, prefix_cache_bytes=LOTS), list(PROMPT[:100])
    for turn in range(3):
        expected = answer_alone(any_model, turns, max_tokens=30)
        sequence_id = driver.submit(turns, 30)
        driver.finish()
        assert driver.tokens[sequence_id] == expected
        assert cached(driver, sequence_id) == (0 if turn == 0 else len(turns) - 20)
        turns += [*driver.tokens[sequence_id], *PROMPT[turn * 20 : turn * 20 + 20]]


@pytest.mark.parametrize("border", [255, 256, 257])
def test_a_prompt_goes_on_from_the_last_message_that_it_shares(
    stateful: WatchedModel, border: int
) -> None:
    driver = Driver(stateful, prefix_cache_bytes=LOTS)
    driver.submit(PROMPT, borders=[100, border, 500])
    driver.finish()
    sequence_id = driver.submit(turned(border + 30))
    driver.finish()
    assert cached(driver, sequence_id) == border
    assert reason(driver, sequence_id) == "no_snapshot"
    assert driver.tokens[sequence_id] == answer_alone(stateful, turned(border + 30))


def test_where_one_prompt_has_left_what_is_stored_the_next_one_finds_a_snapshot(
    stateful: WatchedModel,
) -> None:
    driver = Driver(stateful, prefix_cache_bytes=LOTS)
    found = []
    for prompt in (PROMPT, turned(333, 90), turned(333, 70)):
        sequence_id = driver.submit(prompt)
        driver.finish()
        assert driver.tokens[sequence_id] == answer_alone(stateful, prompt)
        found.append(cached(driver, sequence_id))
    assert found == [0, 0, 333]


def test_a_prompt_inside_a_stored_one_is_answered_from_its_last_snapshot_or_token(
    any_model: WatchedModel,
) -> None:
    driver = Driver(any_model, prefix_cache_bytes=LOTS)
    driver.submit(PROMPT, borders=[300])
    driver.finish()
    sequence_id = driver.submit(PROMPT[:450])
    driver.finish()
    assert cached(driver, sequence_id) == (300 if kinds_of(any_model).needs_states else 449)
    assert driver.tokens[sequence_id] == answer_alone(any_model, PROMPT[:450])


def test_rows_from_different_snapshots_share_a_batch(any_model: WatchedModel) -> None:
    prompts = [turned(400), turned(150), PROMPT[350:500], PROMPT]
    expected = [answer_alone(any_model, prompt) for prompt in prompts]
    driver = Driver(any_model, prefix_cache_bytes=LOTS)
    driver.submit(PROMPT, borders=[150, 400])
    driver.finish()
    ids = [driver.submit(prompt) for prompt in prompts]
    driver.finish()
    assert [cached(driver, one) for one in ids] == [400, 150, 0, LENGTH - 1]
    assert [driver.tokens[sequence_id] for sequence_id in ids] == expected


def test_what_a_cancelled_request_has_read_stays(any_model: WatchedModel) -> None:
    driver = Driver(any_model, chunk=64, idle_chunk=128, prefix_cache_bytes=LOTS)
    left = driver.submit(PROMPT)
    for _ in range(3):
        driver.step()
    driver.cancel(left)
    driver.finish()
    again = driver.submit(PROMPT)
    driver.finish()
    assert cached(driver, again) >= 128
    assert driver.tokens[again] == answer_alone(any_model, PROMPT)


def test_what_is_read_only_to_be_kept_is_gone_on_from(any_model: WatchedModel) -> None:
    driver = Driver(any_model, prefix_cache_bytes=LOTS)
    beside = driver.submit(PROMPT[200:400])
    kept = driver.submit(PROMPT, 0, borders=[300, LENGTH])
    driver.finish()
    assert driver.tokens[beside] == answer_alone(any_model, PROMPT[200:400])
    assert driver.tokens[kept] == []
    asked = turned(300)
    after = driver.submit(asked, borders=[300, len(asked)])
    driver.finish()
    assert cached(driver, after) == 300
    assert driver.tokens[after] == answer_alone(any_model, asked)


def test_what_is_stored_is_evicted_while_rows_that_began_from_it_go_on(
    any_model: WatchedModel,
) -> None:
    expected = answer_alone(any_model, turned(400), max_tokens=30)
    driver = Driver(any_model, prefix_cache_bytes=LOTS)
    driver.submit(PROMPT, borders=[400])
    driver.finish()
    driver.engine._runner._prefixes._budget_bytes = 1
    row = driver.submit(turned(400), 30)
    driver.step_until(row, 3)
    other = driver.submit(PROMPT[100:200])
    driver.finish()
    assert driver.engine.vitals().prefix_cache_bytes == 0
    assert cached(driver, row) == 400
    assert driver.tokens[row] == expected
    assert cached(driver, other) == 0


def test_the_bytes_of_snapshots_are_kept_within_the_budget(stateful: WatchedModel) -> None:
    driver = Driver(stateful, prefix_cache_bytes=300_000)
    for turn in range(6):
        driver.submit(turned(100 * turn, 200), borders=[64, 128])
        driver.finish()
        assert 0 < driver.engine.vitals().prefix_cache_bytes <= 300_000


def test_snapshots_are_taken_behind_the_first_message_and_the_last_ones() -> None:
    assert snapshot_places([], 0, 500) == []
    assert snapshot_places([100, 200, 470], 100, 500) == [200]
    assert snapshot_places([1, 30, 60, 500, 900], 0, 500) == [60]
    many = snapshot_places(range(100, 3000, 100), 0, 3000)
    assert many == [100, *range(2300, 3000, 100)]
    assert len(many) == MOST_SNAPSHOTS
