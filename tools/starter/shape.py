"""The shape of the starter model: a small Qwen3."""

from typing import Any

import mlx.core as mx
from mlx_lm.models.qwen3 import Model, ModelArgs

from tools.starter.circuit import add_copying

VOCAB_SIZE = 1536


def config(vocab_size: int, eos_token_id: int, pad_token_id: int) -> dict[str, Any]:
    """Return the `config.json` of a starter model with this vocabulary."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "intermediate_size": 512,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "hidden_act": "silu",
        "vocab_size": vocab_size,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "torch_dtype": "bfloat16",
    }


def new_model(settings: dict[str, Any]) -> Model:
    """Return an untrained float32 model, which can copy and nothing else."""
    model = Model(ModelArgs.from_dict(settings))
    add_copying(model)
    mx.eval(model.parameters())
    return model
