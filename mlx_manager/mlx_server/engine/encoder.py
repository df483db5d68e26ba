"""Encoders of the BERT family in plain MLX: token ids in, one hidden state a token out.

Parameters have the names of the published weights (`encoder.layer.0.attention.self.query.weight`), so that a file's
tensors are loaded as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

ACTIVATIONS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_fast": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
}
# Of these, positions are counted from behind the padding token's id.
SHIFTED = frozenset({"roberta", "xlm-roberta", "camembert"})


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """The size of an encoder. The first token of an input has position `first_position`."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    first_position: int
    token_types: int
    norm_eps: float
    activation: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> EncoderShape:
        """Read a `config.json`. Raises ValueError for what isn't computed here, KeyError for what is missing."""
        positions = config.get("position_embedding_type") or "absolute"
        activation = config.get("hidden_act") or "gelu"
        if positions != "absolute":
            raise ValueError(f"position embeddings of type {positions!r} are not supported")
        if activation not in ACTIVATIONS:
            raise ValueError(f"the activation {activation!r} is not supported")
        is_shifted = config["model_type"] in SHIFTED
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            positions=config["max_position_embeddings"],
            first_position=config.get("pad_token_id", 1) + 1 if is_shifted else 0,
            token_types=config.get("type_vocab_size", 1 if is_shifted else 2),
            norm_eps=config.get("layer_norm_eps", 1e-12),
            activation=activation,
        )


class Module(nn.Module):
    """MLX's own, with a signature."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]


class Encoder(Module):
    """BERT, RoBERTa and XLM-R, which differ in how they count positions."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.embeddings = _Embeddings(shape)
        self.encoder = _Layers(shape)

    def __call__(self, token_ids: mx.array, mask: mx.array) -> mx.array:
        """Return the last hidden states, `[rows, tokens, hidden]`.

        `token_ids` are `[rows, tokens]`, padded at the end; `mask`, of the same shape, is true for real tokens.
        """
        # Added to the scores of attention, for every head and query: nothing of the padding is seen.
        states = self.embeddings(token_ids)
        hidden = mx.where(mask, 0.0, -mx.inf).astype(states.dtype)[:, None, None, :]
        return self.encoder(states, hidden)


class _Embeddings(Module):
    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocabulary, shape.hidden)
        self.position_embeddings = nn.Embedding(shape.positions, shape.hidden)
        self.token_type_embeddings = nn.Embedding(shape.token_types, shape.hidden)
        self.LayerNorm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps)
        self._first_position = shape.first_position

    def __call__(self, token_ids: mx.array) -> mx.array:
        positions = mx.arange(token_ids.shape[1]) + self._first_position
        first_type = self.token_type_embeddings(mx.array([0]))
        words = self.word_embeddings(token_ids)
        states: mx.array = self.LayerNorm(
            words + self.position_embeddings(positions)[None] + first_type[None]
        )
        return states


class _Layers(Module):
    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.layer = [_Layer(shape) for _ in range(shape.layers)]

    def __call__(self, states: mx.array, hidden: mx.array) -> mx.array:
        for layer in self.layer:
            states = layer(states, hidden)
        return states


class _Layer(Module):
    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.attention = _Attention(shape)
        self.intermediate = _Intermediate(shape)
        self.output = _Output(shape.intermediate, shape)

    def __call__(self, states: mx.array, hidden: mx.array) -> mx.array:
        states = self.attention(states, hidden)
        return self.output(self.intermediate(states), states)


class _Attention(Module):
    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.self = _SelfAttention(shape)
        self.output = _Output(shape.hidden, shape)

    def __call__(self, states: mx.array, hidden: mx.array) -> mx.array:
        return self.output(self.self(states, hidden), states)


class _SelfAttention(Module):
    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.query = nn.Linear(shape.hidden, shape.hidden)
        self.key = nn.Linear(shape.hidden, shape.hidden)
        self.value = nn.Linear(shape.hidden, shape.hidden)
        self._heads = shape.heads
        self._scale = (shape.hidden // shape.heads) ** -0.5

    def __call__(self, states: mx.array, hidden: mx.array) -> mx.array:
        rows, tokens, size = states.shape

        def by_head(projected: mx.array) -> mx.array:
            return projected.reshape(rows, tokens, self._heads, -1).transpose(0, 2, 1, 3)

        seen = mx.fast.scaled_dot_product_attention(
            by_head(self.query(states)),
            by_head(self.key(states)),
            by_head(self.value(states)),
            scale=self._scale,
            mask=hidden,
        )
        return seen.transpose(0, 2, 1, 3).reshape(rows, tokens, size)


class _Intermediate(Module):
    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.hidden, shape.intermediate)
        self._activation = ACTIVATIONS[shape.activation]

    def __call__(self, states: mx.array) -> mx.array:
        return self._activation(self.dense(states))


class _Output(Module):
    """Adds what was computed to what it was computed from, and normalises the sum."""

    def __init__(self, size: int, shape: EncoderShape) -> None:
        super().__init__()
        self.dense = nn.Linear(size, shape.hidden)
        self.LayerNorm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps)

    def __call__(self, computed: mx.array, states: mx.array) -> mx.array:
        normed: mx.array = self.LayerNorm(self.dense(computed) + states)
        return normed
