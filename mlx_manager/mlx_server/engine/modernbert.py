"""ModernBERT in plain MLX: rotary positions, gated layers, and attention that is mostly local.

Parameters have the names of the published weights, as in `encoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_manager.mlx_server.engine.encoder import ACTIVATIONS, Module

LOCAL = "sliding_attention"
GLOBAL = "full_attention"


@dataclass(frozen=True, slots=True)
class ModernShape:
    """The size of an encoder. Layer `n` is local or not as `locals_[n]` says.

    A token sees those at most `reach` away from it in a local layer, and all in the others; `theta` and `local_theta`
    are the bases of their rotations.
    """

    locals_: tuple[bool, ...]
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    reach: int
    theta: float
    local_theta: float
    norm_eps: float
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    activation: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModernShape:
        """Read a `config.json`. Raises ValueError for what isn't computed here, KeyError for what is missing."""
        activation = config.get("hidden_activation") or "gelu"
        if activation not in ACTIVATIONS:
            raise ValueError(f"the activation {activation!r} is not supported")
        return cls(
            locals_=_locals(config),
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            reach=config.get("local_attention", 128) // 2,
            theta=_theta(config, GLOBAL, "global_rope_theta", 160_000.0),
            local_theta=_theta(config, LOCAL, "local_rope_theta", 10_000.0),
            norm_eps=config.get("norm_eps", 1e-5),
            norm_bias=config.get("norm_bias", False),
            attention_bias=config.get("attention_bias", False),
            mlp_bias=config.get("mlp_bias", False),
            activation=activation,
        )


def _locals(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers are local: named one by one in newer files, every one but each third in older ones."""
    if kinds := config.get("layer_types"):
        return tuple(kind == LOCAL for kind in kinds)
    every = config.get("global_attn_every_n_layers", 3)
    return tuple(layer % every != 0 for layer in range(config["num_hidden_layers"]))


def _theta(config: Mapping[str, Any], kind: str, older_name: str, default: float) -> float:
    """The base of the rotations of one kind of layer. Raises ValueError for those that are scaled."""
    newer = (config.get("rope_parameters") or {}).get(kind) or {}
    scaling = newer.get("rope_type", "default")
    if scaling != "default":
        raise ValueError(f"rotary positions of type {scaling!r} are not supported")
    return float(newer.get("rope_theta") or config.get(older_name) or default)


class ModernBert(Module):
    """The encoder without a head."""

    def __init__(self, shape: ModernShape) -> None:
        super().__init__()
        self.embeddings = _Embeddings(shape)
        self.layers = [_Layer(shape, number) for number in range(len(shape.locals_))]
        self.final_norm = _norm(shape)
        self._reach = shape.reach

    def __call__(self, token_ids: mx.array, mask: mx.array) -> mx.array:
        """Return the last hidden states, `[rows, tokens, hidden]`.

        `token_ids` are `[rows, tokens]`, padded at the end; `mask`, of the same shape, is true for real tokens.
        """
        states = self.embeddings(token_ids)
        places = mx.arange(token_ids.shape[1])
        distance = mx.abs(places[:, None] - places[None])
        # Padding sees itself: of nothing at all there is no mean, and what isn't a number spreads.
        seen = mask[:, None, None, :] | (distance == 0)
        near = seen & (distance <= self._reach)
        for layer in self.layers:
            states = layer(states, near if layer.is_local else seen)
        last: mx.array = self.final_norm(states)
        return last


class _Embeddings(Module):
    def __init__(self, shape: ModernShape) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(shape.vocabulary, shape.hidden)
        self.norm = _norm(shape)

    def __call__(self, token_ids: mx.array) -> mx.array:
        states: mx.array = self.norm(self.tok_embeddings(token_ids))
        return states


class _Layer(Module):
    """The first one has no norm before its attention: the embeddings end with one."""

    def __init__(self, shape: ModernShape, number: int) -> None:
        super().__init__()
        self.is_local = shape.locals_[number]
        self.attn_norm = nn.Identity() if number == 0 else _norm(shape)
        self.attn = _Attention(shape, shape.local_theta if self.is_local else shape.theta)
        self.mlp_norm = _norm(shape)
        self.mlp = _Gated(shape)

    def __call__(self, states: mx.array, seen: mx.array) -> mx.array:
        states = states + self.attn(self.attn_norm(states), seen)
        return states + self.mlp(self.mlp_norm(states))


class _Attention(Module):
    def __init__(self, shape: ModernShape, theta: float) -> None:
        super().__init__()
        size = shape.hidden // shape.heads
        self.Wqkv = nn.Linear(shape.hidden, 3 * shape.hidden, bias=shape.attention_bias)
        self.Wo = nn.Linear(shape.hidden, shape.hidden, bias=shape.attention_bias)
        self._rotate = nn.RoPE(size, base=theta)
        self._heads = shape.heads
        self._scale = size**-0.5

    def __call__(self, states: mx.array, seen: mx.array) -> mx.array:
        rows, tokens, hidden = states.shape
        by_head = self.Wqkv(states).reshape(rows, tokens, 3, self._heads, -1)
        query, key, value = by_head.transpose(2, 0, 3, 1, 4)
        found = mx.fast.scaled_dot_product_attention(
            self._rotate(query), self._rotate(key), value, scale=self._scale, mask=seen
        )
        joined: mx.array = self.Wo(found.transpose(0, 2, 1, 3).reshape(rows, tokens, hidden))
        return joined


class _Gated(Module):
    def __init__(self, shape: ModernShape) -> None:
        super().__init__()
        self.Wi = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=shape.mlp_bias)
        self.Wo = nn.Linear(shape.intermediate, shape.hidden, bias=shape.mlp_bias)
        self._activation = ACTIVATIONS[shape.activation]

    def __call__(self, states: mx.array) -> mx.array:
        value, gate = mx.split(self.Wi(states), 2, axis=-1)
        narrow: mx.array = self.Wo(self._activation(value) * gate)
        return narrow


def _norm(shape: ModernShape) -> nn.LayerNorm:
    return nn.LayerNorm(shape.hidden, eps=shape.norm_eps, bias=shape.norm_bias)
