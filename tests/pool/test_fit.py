"""What a model will take in memory, told from its files: equal to what it takes in the end."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine.loading import load
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.mlx_server.pool.fit import LEAST_HEAD_ROOM_BYTES, predict
from mlx_manager.mlx_server.pool.memory import machine_bytes
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
    assert need.kv_bytes == used_kv_bytes(model_of(config), CONTEXT_TOKENS)


def test_linear_layers_keep_no_keys_and_values(tmp_path: Path) -> None:
    config = SMALL | {"model_type": "qwen3_next", "full_attention_interval": 2, "head_dim": 16}
    full = SMALL | {"model_type": "qwen3", "head_dim": 16}
    (tmp_path / "a").mkdir()
    for folder, one in (("a", config), ("b", full)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "config.json").write_text(json.dumps(one))
        (tmp_path / folder / "model.safetensors").touch()
    a, b = (predict(one, is_float32=True) for one in Catalog({}, [tmp_path], None).list())
    assert a.kv_bytes * 2 == b.kv_bytes


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
    # Two layers, keys and values, two heads of 16 numbers of four bytes.
    assert needs["a"].kv_bytes == 512 * 2 * 2 * 2 * 16 * 4
    assert needs["b"].kv_bytes == 8 * needs["a"].kv_bytes
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
