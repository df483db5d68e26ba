"""Models whose caches mlx-lm can't batch: they answer one request after the other, each as it would alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ChunkedKVCache, KVCache, make_prompt_cache
from mlx_lm.models.deepseek_v41 import LayerCache

from mlx_manager.mlx_server.engine.row_state import kinds_of
from mlx_manager.mlx_server.engine.single_row import as_batch
from tests.engine.driving import Driver, answer_alone
from tests.engine.models import MODEL_KINDS, VOCABULARY, WatchedModel

PROMPT = [(31 * at * at + 7 * at + 5) % VOCABULARY for at in range(120)]


@pytest.fixture
def chunked(models: dict[str, Any]) -> WatchedModel:
    return WatchedModel(models["chunked"])


def test_only_such_a_model_is_answered_one_after_the_other(models: dict[str, Any]) -> None:
    alone = [kind for kind, model in models.items() if not kinds_of(model).are_batchable]
    assert alone == ["chunked"]
    assert set(models) == set(MODEL_KINDS)


def test_requests_wait_for_each_other_and_each_has_its_answer(chunked: WatchedModel) -> None:
    prompts = [PROMPT[at : 60 + 20 * at] for at in range(4)]
    expected = [answer_alone(chunked, prompt) for prompt in prompts]
    driver = Driver(chunked, max_batch=8)
    ids = [driver.submit(prompt) for prompt in prompts]
    driver.finish()
    assert [driver.tokens[one] for one in ids] == expected
    assert {driver.ended[one].stamps.batch_width_max for one in ids} == {1}
    assert [driver.ended[one].stamps.queue_reason for one in ids] == [None, *["places"] * 3]
    assert {rows for rows, _ in chunked.shapes} == {1}


def test_several_answers_to_one_prompt_read_it_once(chunked: WatchedModel) -> None:
    driver = Driver(chunked)
    chunked.shapes.clear()
    ids = driver.submit_choices(PROMPT, [1, 2, 3])
    driver.finish()
    assert len({tuple(driver.tokens[one]) for one in ids}) == 3
    assert sum(tokens for _, tokens in chunked.shapes if tokens > 1) < len(PROMPT)


def test_one_that_is_cancelled_makes_way(chunked: WatchedModel) -> None:
    driver = Driver(chunked, chunk=16, idle_chunk=16)
    left, stays = driver.submit(PROMPT), driver.submit(PROMPT[5:])
    driver.step()
    driver.cancel(left)
    driver.finish()
    assert driver.tokens[stays] == answer_alone(chunked, PROMPT[5:])


def test_a_second_row_in_such_a_batch_is_an_error(models: dict[str, Any]) -> None:
    one, other = (as_batch(make_prompt_cache(models["chunked"])) for _ in range(2))
    with pytest.raises(ValueError, match="2 rows in a batch"):
        one[0].merge([one[0], other[0]])
    with pytest.raises(ValueError, match="can't be batched"):
        one[0].extend(other[0])


@pytest.mark.parametrize("own", [LayerCache(8), ChunkedKVCache(8)], ids=["layer", "chunked"])
def test_what_comes_out_is_the_row_s_own_cache_and_no_part_of_the_batch(own: Any) -> None:
    [single] = as_batch([own])
    assert type(own) is not type(single)
    single.merge([single]).keys = mx.ones((1, 1, 3, 2))
    out = single.extract(0)
    assert type(out) is type(own)
    out.keys[..., 0, :] = 5
    assert mx.all(single.keys == 1).item()


def test_caches_that_can_be_batched_stay_what_they_are() -> None:
    caches = [KVCache(), KVCache()]
    assert as_batch(caches) == caches
