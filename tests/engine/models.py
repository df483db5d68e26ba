"""Models for tests of the engine: one whose answers depend on the whole prompt, and a wrapper that watches it work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import deepseek_v3, falcon_h1, gemma3_text, llama4, mamba2, qwen3_next
from mlx_lm.models.cache import KVCache
from mlx_lm.models.qwen3 import Model, ModelArgs

from mlx_manager.mlx_server.engine.kv_bits import quantise_kv
from tools.random_model import make_random_model

VOCABULARY = 256


def make_lively_model(head_dim: int = 16) -> Any:
    """Return a model in memory whose next token depends on every token before it.

    With tied embeddings and plain random weights a model repeats the last token for ever, and a test of equal
    answers would pass whatever happened to the cache.
    """
    mx.random.seed(3)
    model: Any = Model(
        ModelArgs(
            model_type="qwen3",
            hidden_size=64,
            num_hidden_layers=2,
            intermediate_size=96,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=head_dim,
            rms_norm_eps=1e-6,
            vocab_size=VOCABULARY,
            max_position_embeddings=4096,
            rope_theta=10_000.0,
            tie_word_embeddings=False,
        )
    )
    for layer in model.layers:
        layer.self_attn.v_proj.weight *= 6
        layer.self_attn.o_proj.weight *= 6
    mx.eval(model.parameters())
    return model


def make_quantised_model(bits: int = 8, head_dim: int = 32) -> Any:
    """Return such a model whose keys and values are kept in so many bits."""
    model = make_lively_model(head_dim)
    quantise_kv(model, bits)
    return model


def make_sliding_model() -> Any:
    """Return a model with windows of 48 tokens in three layers of four."""
    arguments = gemma3_text.ModelArgs(
        model_type="gemma3_text",
        hidden_size=64,
        num_hidden_layers=4,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=VOCABULARY,
        query_pre_attn_scalar=16,
        sliding_window=48,
        sliding_window_pattern=4,
    )
    return _with_weights(gemma3_text.Model(arguments))


def make_recurrent_model() -> Any:
    """Return a state space model, which has no attention."""
    arguments = mamba2.ModelArgs(
        model_type="mamba2",
        num_heads=8,
        head_dim=16,
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        state_size=16,
        num_hidden_layers=2,
        layer_norm_epsilon=1e-5,
        conv_kernel=4,
        n_groups=1,
        use_bias=False,
        use_conv_bias=True,
        tie_word_embeddings=False,
        time_step_limit=(0.0, 100.0),
        time_step_rank="auto",
    )
    model = _with_weights(mamba2.Model(arguments))
    for layer in model.layers:
        # As it is made it forgets within a dozen tokens, and what it answers proves nothing of the state.
        layer.mixer.A_log = mx.full(layer.mixer.A_log.shape, -9.0)
    return model


def make_hybrid_model() -> Any:
    """Return a model whose layers are of linear attention, but for every second, which is of attention."""
    arguments = qwen3_next.ModelArgs(
        model_type="qwen3_next",
        hidden_size=64,
        num_hidden_layers=4,
        intermediate_size=96,
        num_attention_heads=4,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_conv_kernel_dim=4,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        shared_expert_intermediate_size=32,
        mlp_only_layers=[0, 1, 2, 3],
        moe_intermediate_size=32,
        rms_norm_eps=1e-6,
        vocab_size=VOCABULARY,
        num_key_value_heads=2,
        rope_theta=10_000.0,
        partial_rotary_factor=0.5,
        max_position_embeddings=4096,
        head_dim=16,
        full_attention_interval=2,
    )
    return _with_weights(qwen3_next.Model(arguments))


def make_paired_model() -> Any:
    """Return a model each of whose layers has attention and a state space, and so two caches."""
    arguments = falcon_h1.ModelArgs(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        mamba_d_head=16,
        mamba_d_ssm=64,
        mamba_d_state=16,
        mamba_n_heads=4,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    return _with_weights(falcon_h1.Model(arguments))


def make_chunked_model() -> Any:
    """Return a model whose layers look back to the begin of their chunk of 48 tokens, but for every fourth.

    mlx-lm can't batch it.
    """
    text = {
        "model_type": "llama4_text",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 32,
        "intermediate_size_mlp": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "attention_bias": False,
        "attention_chunk_size": 48,
        "interleave_moe_layer_step": 2,
        "num_experts_per_tok": 1,
        "num_local_experts": 4,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10_000.0,
        "use_qk_norm": True,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
    }
    return _with_weights(
        llama4.Model(llama4.ModelArgs.from_dict({"text_config": text, "model_type": "llama4"}))
    )


def make_latent_model(latent: int = 24, turned: int = 8) -> Any:
    """Return a model whose attention keeps a latent of each token, and a part turned by its place: so many numbers."""
    arguments = deepseek_v3.ModelArgs(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=4,
        kv_lora_rank=latent,
        q_lora_rank=32,
        qk_rope_head_dim=turned,
        v_head_dim=16,
        qk_nope_head_dim=16,
        first_k_dense_replace=2,
        max_position_embeddings=4096,
    )
    return _with_weights(deepseek_v3.Model(arguments))


# Every kind of state that a layer can leave, by the models that have it.
MODEL_KINDS: dict[str, Callable[[], Any]] = {
    "plain": make_lively_model,
    "quantised": make_quantised_model,
    "sliding": make_sliding_model,
    "recurrent": make_recurrent_model,
    "hybrid": make_hybrid_model,
    "paired": make_paired_model,
    "chunked": make_chunked_model,
    "latent": make_latent_model,
}
# What their layers keep belongs to one place in the row, so it can't be cut: `row_state`.
WITH_STATES = ("sliding", "chunked", "recurrent", "hybrid", "paired")


def write_model(kind: str, folder: Path) -> Path:
    """Write such a model, with a tokenizer and so a larger vocabulary, into `folder` and return it."""
    make_random_model(folder)
    config = json.loads((folder / "config.json").read_text())
    shape = MODEL_KINDS[kind]()
    arguments = asdict(shape.args)
    own = {name: config[name] for name in ("vocab_size", "eos_token_id")}
    text = arguments.get("text_config", {})
    text.update(own)
    # mlx-lm takes a number for it and transformers none.
    text.pop("attn_temperature_tuning", None)
    arguments |= own
    model = _with_weights(type(shape)(type(shape.args).from_dict(arguments)))
    (folder / "config.json").write_text(json.dumps(arguments))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


def _with_weights(model: Any) -> Any:
    """Give a model large random weights, so that what it answers depends on more than the last token."""
    mx.random.seed(5)
    model.update(tree_map(lambda one: one + 0.2 * mx.random.normal(one.shape), model.parameters()))
    mx.eval(model.parameters())
    return model


class WatchedModel:
    """A model that keeps the shape `(rows, tokens)` of every forward pass, and fails or is slow when it is told to.

    Slow is a sleep of `ns_per_token` for each token of a prompt.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.shapes: list[tuple[int, int]] = []
        self.failure: Exception | None = None
        self.is_full = False
        self.ns_per_token = 0

    @property
    def layers(self) -> Any:
        """mlx-lm makes one cache for each; a model that is `full` can't make any."""
        if self.is_full:
            raise MemoryError("no room for another cache")
        return self._model.layers

    def make_cache(self) -> Any:
        """Return the model's own caches: those of attention where it says nothing of them."""
        layers = self.layers
        return (
            self._model.make_cache()
            if hasattr(self._model, "make_cache")
            else [KVCache() for _ in layers]
        )

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        rows, tokens = inputs.shape
        self.shapes.append((rows, tokens))
        if tokens > 1:
            time.sleep(rows * tokens * self.ns_per_token / 1e9)
        logits: mx.array = self._model(inputs, cache=cache)
        return logits
