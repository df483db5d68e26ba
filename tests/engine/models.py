"""Models for tests of the engine: one whose answers depend on the whole prompt, and a wrapper that watches it work."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx
from mlx_lm.models.qwen3 import Model, ModelArgs

VOCABULARY = 256


def make_lively_model() -> Any:
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
            head_dim=16,
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
