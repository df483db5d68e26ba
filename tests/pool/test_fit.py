"""What a model will take in memory, told from its files: equal to what it takes in the end."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine.kv_bits import quantise_kv
from mlx_manager.mlx_server.engine.kv_cost import measure_kv_cost
from mlx_manager.mlx_server.engine.loading import load
from mlx_manager.mlx_server.engine.messages import Ready, Submit
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.mlx_server.pool.fit import CHUNK_TOKENS, LEAST_HEAD_ROOM_BYTES, predict
from mlx_manager.mlx_server.pool.memory import machine_bytes
from mlx_manager.mlx_server.workers.room import check_memory
from tests.engine.driving import GREEDY, Driver
from tests.engine.models import WatchedModel
from tools.random_model import Shape, make_random_model

# More than a window, and a whole number of chunks: a window is kept with the last chunk that was read behind it.
CONTEXT_TOKENS = 4096
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 64,
    "max_position_embeddings": CONTEXT_TOKENS,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
# What these have in common is how mlx-lm's caches for them grow.
CONFIGS: dict[str, dict[str, Any]] = {
    "everything": {"model_type": "qwen3", "head_dim": 16},
    "no head_dim": {"model_type": "llama"},
    "windows": {
        "model_type": "llama",
        "head_dim": 8,
        "layer_types": SLIDING,
        "sliding_window": 512,
    },
    "windows that mlx-lm ignores": {
        "model_type": "qwen2",
        "layer_types": SLIDING,
        "sliding_window": 512,
    },
    "windows by a pattern": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 512,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
        "rope_local_base_freq": 10000.0,
    },
    "latent attention": {
        "model_type": "deepseek_v3",
        "moe_intermediate_size": 16,
        "n_routed_experts": None,
        "n_shared_experts": None,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 4,
        "rope_scaling": None,
    },
    "chunks of attention": {
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text",
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "intermediate_size": 32,
            "intermediate_size_mlp": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "attention_bias": False,
            "attention_chunk_size": 512,
            "interleave_moe_layer_step": 2,
            "num_experts_per_tok": 1,
            "num_local_experts": 2,
            "rms_norm_eps": 1e-6,
            "rope_scaling": None,
            "rope_theta": 10_000.0,
            "use_qk_norm": True,
            "vocab_size": 64,
            "max_position_embeddings": CONTEXT_TOKENS,
        },
    },
    "linear layers": {
        "model_type": "qwen3_next",
        "head_dim": 16,
        "full_attention_interval": 2,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 32,
        "mlp_only_layers": [0, 1, 2, 3],
        "moe_intermediate_size": 32,
        "partial_rotary_factor": 0.5,
    },
}


def model_of(config: dict[str, Any]) -> Any:
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    return module.Model(module.ModelArgs.from_dict(config))


def write(folder: Path, config: dict[str, Any]) -> ModelFiles:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(model_of(config).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return Catalog({}, [folder], None).list()[0]


def used_kv_bytes(model: Any, tokens: int) -> int:
    """What mlx-lm's caches take after a prompt of this length, read in chunks as the engine does.

    How large they get is known before anything is computed, so nothing is.
    """
    caches = make_prompt_cache(model)
    for at in range(0, tokens, 2048):
        size = min(2048, tokens - at)
        model(mx.zeros((1, size), mx.int32), cache=caches)
    return sum(cache.nbytes for cache in caches)


@pytest.mark.parametrize("kind", CONFIGS)
def test_keys_and_values_are_predicted_as_mlx_lm_allocates_them(tmp_path: Path, kind: str) -> None:
    config = SMALL | CONFIGS[kind]
    files = write(tmp_path / "model", config)

    need = predict(files, is_float32=True)

    assert need.context_tokens == CONTEXT_TOKENS
    assert need.kv_cost is not None
    # A window makes room for the first token of a piece, a chunk of attention doesn't.
    piece = CHUNK_TOKENS if kind == "chunks of attention" else CHUNK_TOKENS - 1
    last_pieces = sum(token_bytes * piece for token_bytes, _ in need.kv_cost.windows)
    kept_bytes = need.kv_cost.row_bytes(CONTEXT_TOKENS) + last_pieces
    assert kept_bytes == used_kv_bytes(model_of(config), CONTEXT_TOKENS)


@pytest.mark.parametrize(("bits", "head_dim"), [(8, 64), (4, 64), (8, 32), (4, 96)])
def test_quantised_keys_and_values_are_predicted_as_the_engine_measures_them(
    tmp_path: Path, bits: Literal[4, 8], head_dim: int
) -> None:
    config = SMALL | CONFIGS["everything"] | {"head_dim": head_dim}
    files = write(tmp_path / "model", config)
    files = replace(files, settings=ModelSettings(kv_bits=bits))
    model = model_of(config)
    whole = measure_kv_cost(model)
    quantise_kv(model, bits)

    need = predict(files, is_float32=True)

    assert need.kv_cost == measure_kv_cost(model)
    assert need.kv_cost is not None
    assert whole is not None
    assert need.kv_cost.token_bytes < whole.token_bytes / 2.5


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_a_model_is_let_in_with_serves_a_request_of_its_whole_context(
    tmp_path: Path, kind: str
) -> None:
    """By what the engine measures when the model is in memory, and by what keys and values then take."""
    config = SMALL | CONFIGS[kind]
    need = predict(write(tmp_path / "model", config), is_float32=True, chunk_tokens=512)
    model = model_of(config)
    measured = measure_kv_cost(model)
    ready = Ready(0, "float32", "cpu", True, 0.0, measured, need.kv_bytes, chunk_tokens=512)
    driver = Driver(
        WatchedModel(model),
        chunk=512,
        idle_chunk=512,
        kv_budget_bytes=need.kv_bytes,
        kv_shared_bytes=need.kv_bytes,
    )

    request = driver.submit([at % 64 for at in range(CONTEXT_TOKENS - 4)], 4)
    check_memory("model", ready, Submit(0, [0] * (CONTEXT_TOKENS - 4), 4, [], GREEDY))
    held = list[int]()
    while driver.engine.has_work:
        driver.step()
        held.append(driver.engine.vitals().kv_bytes or 0)

    assert need.kv_cost == measured
    assert len(driver.tokens[request]) == 4
    assert 0 < max(held) <= need.kv_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_predicted_as_they_are_loaded(tmp_path: Path, dtype: str) -> None:
    make_random_model(tmp_path / "model", Shape(dtype=dtype))
    [files] = Catalog({}, [tmp_path], None).list()

    loaded = load(files.path)

    assert loaded.ready.dtype == "float32"
    assert predict(files, is_float32=True).weights_bytes == loaded.ready.weights_bytes
    halves = predict(files, is_float32=False).weights_bytes
    assert halves == loaded.ready.weights_bytes // (1 if dtype == "float32" else 2)


def test_a_set_context_is_planned_for_in_full(tmp_path: Path) -> None:
    make_random_model(tmp_path / "model")
    own = {
        "a": ModelSettings(context_tokens=512),
        "b": ModelSettings(context_tokens=4096),
        "c": ModelSettings(),
    }
    needs = {}
    for name, settings in own.items():
        [files] = Catalog({}, [tmp_path], None, {"model": settings}).list()
        needs[name] = predict(files, is_float32=True)
    # Two layers, keys and values, two heads of 16 numbers of four bytes; columns to spare begin another 256 tokens, and
    # a prompt that is read is kept with up to 255 of those.
    assert needs["a"].kv_bytes == (512 + 256) * 2 * 2 * 2 * 16 * 4
    assert needs["b"].kv_bytes == (4096 + 256) * 2 * 2 * 2 * 16 * 4
    assert needs["c"].context_tokens == 4096, (
        "the model's own, which is shorter than what is planned"
    )


def test_the_text_part_of_a_model_that_sees_counts(tmp_path: Path) -> None:
    folder = make_random_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    [files] = Catalog({}, [tmp_path], None).list()
    plain = predict(files, is_float32=True)

    (folder / "config.json").write_text(json.dumps({"model_type": "sees", "text_config": config}))

    assert predict(files, is_float32=True) == plain


@pytest.mark.parametrize(
    "weights",
    [b"", b"\0", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b'\x0e\0\0\0\0\0\0\0{"a": {"b":1}}'],
)
def test_damaged_weights_are_left_to_the_load(tmp_path: Path, weights: bytes) -> None:
    make_random_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(weights)
    [files] = Catalog({}, [tmp_path], None).list()
    assert predict(files, is_float32=True).weights_bytes == len(weights)


@pytest.mark.parametrize(
    "config", [{}, {"num_attention_heads": "x"}, {"num_hidden_layers": -1}, {"text_config": 5}]
)
def test_an_odd_config_is_left_to_the_load(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x"} | config))
    (tmp_path / "model.safetensors").touch()
    [files] = Catalog({}, [tmp_path], None).list()
    need = predict(files, is_float32=True)
    assert (need.kv_bytes, need.total_bytes) == (0, LEAST_HEAD_ROOM_BYTES)


def test_a_container_s_limit_is_its_memory(tmp_path: Path) -> None:
    whole = machine_bytes(())
    limit = tmp_path / "memory.max"
    assert machine_bytes((limit,)) == whole > 2**28
    limit.write_text("max\n")
    assert machine_bytes((limit,)) == whole
    limit.write_text("268435456\n")
    assert machine_bytes((limit,)) == 2**28
