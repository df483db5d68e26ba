"""A model that makes vectors: its weights in memory, and one forward pass over a batch of inputs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import qwen3
from mlx_lm.utils import load_model

from mlx_manager.mlx_server.engine.encoder import Encoder, EncoderShape
from mlx_manager.mlx_server.engine.loading import Tell, for_this_device, ready
from mlx_manager.mlx_server.engine.messages import Ready
from mlx_manager.mlx_server.engine.modernbert import ModernBert, ModernShape
from mlx_manager.mlx_server.engine.pooling import Pooling, read_pooling

ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "camembert"})
MODERN = "modernbert"
# What the classes with a head of their own put before the encoder's names.
PREFIXES = ("bert.", "roberta.", "model.")
# What the encoder's own names begin with; others are of heads.
PARTS = ("embeddings.", "encoder.", "layers.", "final_norm.")

States = Callable[[mx.array, mx.array], mx.array]


class EmbeddingModel:
    """Turns token ids into vectors. Belongs to the thread that loaded it."""

    def __init__(self, states: States, pooling: Pooling, loaded: Ready) -> None:
        self.ready = loaded
        self._states = states
        self._pooling = pooling

    def embed(self, batch: list[list[int]], dimensions: list[int | None]) -> list[bytes]:
        """Return a vector for each input, in little-endian float32, with as many numbers as `dimensions` says.

        None means all of them. All inputs are computed in one pass, those that are shorter than the longest padded to
        its length.
        """
        longest = max(map(len, batch))
        token_ids = mx.array([tokens + [0] * (longest - len(tokens)) for tokens in batch])
        mask = mx.arange(longest)[None] < mx.array([len(tokens) for tokens in batch])[:, None]
        states = self._states(token_ids, mask)
        pooled = {size: self._pooling(states, mask, size) for size in set(dimensions)}
        mx.eval(*pooled.values())
        rows = {size: _rows(vectors) for size, vectors in pooled.items()}
        return [rows[size][row] for row, size in enumerate(dimensions)]


def load_embedding_model(path: Path, tell: Tell | None = None) -> EmbeddingModel:
    """Load the model in `path`, and `tell` how far that is. Must run in the thread that will compute.

    Raises ValueError for a model, or a step after it, that isn't computed here.
    """
    began_s = time.monotonic()
    config = json.loads((path / "config.json").read_text())
    pooling = read_pooling(path)
    model, states = (
        _load_encoder(path, config)
        if config["model_type"] in (*ENCODERS, MODERN)
        else _load_qwen3(path)
    )
    for_this_device(model, tell)
    return EmbeddingModel(states, pooling, ready(model, began_s))


def _load_encoder(path: Path, config: Mapping[str, Any]) -> tuple[nn.Module, States]:
    encoder = (
        ModernBert(ModernShape.of(config))
        if config["model_type"] == MODERN
        else Encoder(EncoderShape.of(config))
    )
    weights = _encoder_weights(path)
    if quantization := config.get("quantization"):
        nn.quantize(
            encoder,
            group_size=quantization["group_size"],
            bits=quantization["bits"],
            class_predicate=lambda name, _module: f"{name}.scales" in weights,
        )
    encoder.load_weights(list(weights.items()))
    return encoder, encoder


def _encoder_weights(path: Path) -> dict[str, mx.array]:
    """The encoder's tensors by its own names, without those of heads and of buffers that hold no weights."""
    weights: dict[str, mx.array] = {}
    for file in sorted(path.glob("model*.safetensors")):
        found: Any = mx.load(str(file))
        weights.update(found)
    plain = {_without_prefix(name): array for name, array in weights.items()}
    return {
        name: array
        for name, array in plain.items()
        if name.startswith(PARTS) and not name.endswith("_ids")
    }


def _without_prefix(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


class Headless(qwen3.Model):
    """Qwen3, also from weights that were published without the language model around them."""

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Return the weights by the names that mlx-lm has for them."""
        if not any(name.startswith("model.") for name in weights):
            weights = {f"model.{name}": array for name, array in weights.items()}
        sanitized: dict[str, mx.array] = super().sanitize(weights)  # type: ignore[no-untyped-call]
        return sanitized


def _load_qwen3(path: Path) -> tuple[nn.Module, States]:
    """A language model without its last step. It looks back only, so padding behind an input is not seen.

    Others than Qwen3 are not loaded: many that make vectors were made to look forward as well, which mlx-lm's don't.
    """
    model, _config = load_model(path, get_model_classes=_qwen3_classes)

    def states(token_ids: mx.array, _mask: mx.array) -> mx.array:
        last: mx.array = model.model(token_ids)
        return last

    return model, states


def _qwen3_classes(config: Mapping[str, Any]) -> tuple[type[nn.Module], type]:
    if config["model_type"] != "qwen3":
        raise ValueError(f"vectors by models of type {config['model_type']!r} are not supported")
    return Headless, qwen3.ModelArgs


def _rows(vectors: mx.array) -> list[bytes]:
    """Each row's numbers in little-endian float32, which every machine that MLX runs on has."""
    buffer: Any = vectors
    data, size = bytes(memoryview(buffer)), vectors.shape[1] * vectors.itemsize
    return [data[at : at + size] for at in range(0, len(data), size)]
