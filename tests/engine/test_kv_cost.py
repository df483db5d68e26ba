"""What a model keeps of a sequence is predicted before anything is computed, and then is so."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import gemma3_text, mamba, qwen3
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlx_manager.mlx_server.engine.kv_cost import bytes_beside, measure_kv_cost
from tests.engine.driving import Driver
from tests.engine.models import WatchedModel

WINDOW = 512


def gemma() -> Any:
    """Every second layer sees a window only."""
    return gemma3_text.Model(
        gemma3_text.ModelArgs(
            model_type="gemma3_text",
            hidden_size=32,
            num_hidden_layers=4,
            intermediate_size=32,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            vocab_size=64,
            sliding_window=WINDOW,
            sliding_window_pattern=2,
        )
    )


def qwen() -> Any:
    return qwen3.Model(
        qwen3.ModelArgs(
            model_type="qwen3",
            hidden_size=32,
            num_hidden_layers=3,
            intermediate_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            rms_norm_eps=1e-6,
            vocab_size=64,
            max_position_embeddings=4096,
            rope_theta=10_000.0,
            tie_word_embeddings=True,
        )
    )


def recurrent() -> Any:
    return mamba.Model(
        mamba.ModelArgs(
            model_type="mamba",
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            state_size=8,
            num_hidden_layers=2,
            conv_kernel=4,
            use_bias=False,
            use_conv_bias=True,
            time_step_rank=4,
        )
    )


@pytest.mark.parametrize("make", [qwen, gemma, recurrent])
@pytest.mark.parametrize("tokens", [1, 256, 257, 1500])
def test_what_a_row_needs_is_what_was_predicted(make: Any, tokens: int) -> None:
    model = make()
    cost = measure_kv_cost(model)
    assert cost is not None
    caches = make_prompt_cache(model)
    for begin in range(0, tokens, 256):
        model(mx.ones((1, min(256, tokens - begin)), mx.int32), cache=caches)
        mx.eval([cache.state for cache in caches])
    needed = sum(cache.nbytes for cache in caches)
    assert cost.row_bytes(tokens) == pytest.approx(needed, rel=0.25)
    if make is qwen:
        assert cost.row_bytes(tokens) == needed


def test_a_model_whose_layers_keep_something_unknown_is_not_counted() -> None:
    class MoreKept(KVCache):
        """A kind that nobody knows."""

    class Unknown:
        layers = ()

        def make_cache(self) -> list[Any]:
            return [MoreKept()]  # type: ignore[no-untyped-call]

        def __call__(self, _inputs: mx.array, cache: list[Any]) -> mx.array:
            cache[0].update_and_fetch(mx.zeros((1, 1, 1, 8)), mx.zeros((1, 1, 1, 8)))
            return mx.zeros((1, 1, 8))

    assert measure_kv_cost(Unknown()) is None


def test_what_other_things_take_is_not_for_sequences() -> None:
    everything = bytes_beside(0)
    assert bytes_beside(2**30) == everything - 2**30
    assert 0 < bytes_beside(2**60) < everything


def test_rows_beyond_the_budget_wait_and_are_answered(model: WatchedModel) -> None:
    cost = measure_kv_cost(model)
    assert cost is not None
    driver = Driver(model, kv_budget_bytes=2 * cost.row_bytes(256))
    ids = [driver.submit([at, 7, 9], max_tokens=6) for at in range(5)]
    driver.finish()
    assert [len(driver.tokens[one]) for one in ids] == [6] * 5
    assert {driver.ended[one].stamps.batch_width_max for one in ids} == {2, 1}
    assert driver.ended[ids[2]].stamps.queue_reason == "memory"
    assert driver.ended[ids[0]].stamps.queue_reason is None


def test_a_batch_never_takes_more_than_was_predicted_when_its_rows_were_let_in(
    any_batched: WatchedModel,
) -> None:
    """Prompts that are read beside rows, rows that end and longer ones that come: all at their budget."""
    cost, chosen = measure_kv_cost(any_batched), random.Random(1)
    assert cost is not None
    budget_bytes = 6 * cost.row_bytes(512)
    driver = Driver(
        any_batched,
        max_batch=16,
        chunk=128,
        idle_chunk=512,
        kv_budget_bytes=budget_bytes,
        kv_shared_bytes=budget_bytes,
    )
    for _ in range(16):
        prompt = [chosen.randrange(256) for _ in range(chosen.choice([3, 200, 255, 300, 500]))]
        driver.submit(prompt, chosen.choice([2, 10, 40]))
    widths, promised = set[int](), 0
    while driver.engine.has_work:
        driver.step()
        vitals = driver.engine.vitals()
        assert vitals.kv_bytes is not None
        promised = max(promised, vitals.promised_kv_bytes)
        assert vitals.kv_bytes <= promised <= budget_bytes
        widths.add(vitals.running)
    assert max(widths) >= 3, "several share it"
    assert len(driver.ended) == 16
