"""Keys and values of 8 or 4 bits: what they take, how near they stay, and for which models they are."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import plamo2
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlx_manager.mlx_server.engine.kv_bits import KvBitsImpossible, quantise_kv
from mlx_manager.mlx_server.engine.kv_cost import measure_kv_cost
from mlx_manager.mlx_server.engine.quantised_kv import Quantisation, QuantisedCache
from mlx_manager.mlx_server.engine.row_state import plain_layers
from mlx_manager.mlx_server.engine.slotted_cache import Layout, slots_of
from tests.engine.driving import Driver, answer_alone
from tests.engine.models import (
    MODEL_KINDS,
    VOCABULARY,
    WITH_STATES,
    WatchedModel,
    make_latent_model,
    make_lively_model,
    make_quantised_model,
)

PROMPT = [(31 * at * at + 7 * at + 5) % VOCABULARY for at in range(300)]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_number_comes_back_within_a_step_of_its_group(
    bits: int, group: int, dtype: mx.Dtype
) -> None:
    quantisation = Quantisation(bits, group, dtype)
    numbers = mx.random.normal((2, 3, 5, 128), key=mx.random.key(1)).astype(dtype)
    words = quantisation.pack(numbers)
    assert words.dtype == mx.uint32
    assert words.nbytes == numbers.size * bits // 8 + numbers.size // group * 2 * dtype.size
    back = quantisation.unpack(words)
    assert back.dtype == dtype
    groups = numbers.astype(mx.float32).reshape(-1, group)
    steps = (groups.max(axis=1) - groups.min(axis=1)) / (2**bits - 1)
    off = mx.abs(back.astype(mx.float32).reshape(-1, group) - groups).max(axis=1)
    # MLX keeps the number that is farthest from zero, which moves others by up to a step; two bytes are rounded, too.
    slack = {mx.float32: 1e-5, mx.float16: 0.01, mx.bfloat16: 0.04}[dtype]
    assert mx.all(off <= steps + slack).item()
    assert mx.array_equal(quantisation.words(quantisation.parts(words)), words)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_rows_in_slots_attend_to_what_a_prompt_attends_to(bits: int, head_dim: int) -> None:
    """One computes with quantised numbers, the other with what they stand for."""
    model = make_quantised_model(bits, head_dim)
    own = make_prompt_cache(model)
    mx.eval(model(mx.array([PROMPT]), cache=own))
    layers = plain_layers(model)
    assert layers is not None
    layout = Layout()
    layout.move([len(PROMPT)])
    slot = layout.take(len(PROMPT))
    slots = [slots_of(layout, layers.quantisation) for _ in own]
    for cache, into in zip(own, slots, strict=True):
        columns = slice(0, len(PROMPT))
        into.put(slot, cache.keys[:, :, columns], cache.values[:, :, columns])
    for token in (5, 77, 200):
        inputs = mx.array([[token]])
        found, expected = model(inputs, cache=slots), model(inputs, cache=own)
        layout.advance()
        assert mx.allclose(found, expected, rtol=0, atol=2e-3).item()
    left = [one.extract(slot, len(PROMPT) + 3) for one in slots]
    for cache, row in zip(own, left, strict=True):
        assert type(row) is QuantisedCache
        assert row.offset == cache.offset
        for found, expected in zip(row.keys_and_values(), cache.keys_and_values(), strict=True):
            assert mx.allclose(found, expected, rtol=0, atol=0.1).item()


def test_8_bits_are_nearer_to_whole_numbers_than_4_and_neither_is_equal() -> None:
    def logits(model: Any) -> mx.array:
        caches = make_prompt_cache(model)
        mx.eval(model(mx.array([PROMPT]), cache=caches))
        behind: mx.array = model(mx.array([[9]]), cache=caches)
        return behind

    whole = logits(make_lively_model(32))
    by_8, by_4 = (mx.abs(logits(make_quantised_model(bits)) - whole).max() for bits in (8, 4))
    assert mx.logical_and(by_8 > 0, by_8 < by_4 / 4).item()


@pytest.mark.parametrize(("bits", "share"), [(8, 10 / 32), (4, 6 / 32)])
def test_rows_take_what_was_predicted_and_far_less_than_whole_ones(bits: int, share: float) -> None:
    quantised, whole = make_quantised_model(bits), make_lively_model(32)
    costs = [measure_kv_cost(model) for model in (quantised, whole)]
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[0].token_bytes == share * costs[1].token_bytes
    driver = Driver(WatchedModel(quantised), prefix_cache_bytes=1 << 30)
    driver.submit(PROMPT, 20)
    held = 0
    while driver.engine.has_work:
        driver.step()
        held = max(held, driver.engine.vitals().kv_bytes or 0)
    assert held == costs[0].token_bytes * 512
    assert driver.engine.vitals().prefix_cache_bytes == costs[0].token_bytes * (len(PROMPT) + 20)


@pytest.mark.parametrize("kind", WITH_STATES)
def test_a_model_that_keeps_something_else_is_refused(kind: str) -> None:
    with pytest.raises(KvBitsImpossible, match=r"not all layers .* Leave kv_bits out"):
        quantise_kv(MODEL_KINDS[kind](), 8)


def test_latent_attention_is_refused_whatever_its_widths() -> None:
    """It multiplies with what it keeps itself, past mlx-lm's function."""
    with pytest.raises(KvBitsImpossible, match="values of 8 and 24 numbers"):
        quantise_kv(make_latent_model(), 8)
    with pytest.raises(KvBitsImpossible, match="attention can't compute with quantised"):
        quantise_kv(make_latent_model(latent=64, turned=32), 8)


def test_heads_that_can_not_be_cut_into_groups_are_refused_and_the_model_stays_as_it_is() -> None:
    model = make_lively_model(16)
    with pytest.raises(KvBitsImpossible, match="of 16 numbers: so many are no multiple of 32"):
        quantise_kv(model, 4)
    assert type(make_prompt_cache(model)[0]) is KVCache
    answer_alone(WatchedModel(model), PROMPT)


def test_attention_of_a_model_s_own_is_refused() -> None:
    """plamo2's goes past mlx-lm's function, which alone knows of bits."""
    attention = plamo2.Attention(
        plamo2.ModelArgs(
            hidden_size=64,
            num_attention_heads=2,
            num_key_value_heads=2,
            hidden_size_per_head=32,
        )
    )

    class Only:
        layers = (attention,)

        def __call__(self, inputs: mx.array, cache: Any) -> mx.array:
            hidden = mx.zeros((*inputs.shape, 64))
            logits: mx.array = attention(hidden, mask=None, cache=cache[0])
            return logits

    model: Any = Only()
    with pytest.raises(KvBitsImpossible, match="attention can't compute with quantised"):
        quantise_kv(model, 8)
    assert type(make_prompt_cache(model)[0]) is KVCache
