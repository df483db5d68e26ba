"""The models that benchmarks run on: random weights of a chosen shape, that never end an answer by themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer

from benchmarks.work import ModelName
from tools.random_model import Shape, make_random_model

# Measured on two cores of a shared x86 machine with OpenBLAS, one row: `tiny` 1.3 ms a step, `small` 6 to 8 ms.
SHAPES: dict[ModelName, Shape] = {
    "tiny": Shape(
        layers=2,
        hidden=128,
        intermediate=256,
        heads=4,
        kv_heads=2,
        head_dim=32,
        vocabulary=2048,
        context=16_384,
    ),
    "small": Shape(
        layers=8,
        hidden=256,
        intermediate=1024,
        heads=8,
        kv_heads=4,
        head_dim=32,
        vocabulary=4096,
        context=16_384,
    ),
}
WEIGHTS_FILE = "model.safetensors"
EMBEDDING = "model.embed_tokens.weight"


def make_model(folder: Path, name: ModelName, context: int | None = None) -> Path:
    """Write the model to `folder`/`name`, in float32, and return that path. It may have a `context` of its own."""
    shape = SHAPES[name] if context is None else replace(SHAPES[name], context=context)
    path = make_random_model(folder / name, shape)
    _silence_all_but_plain_text(path)
    return path


def _silence_all_but_plain_text(path: Path) -> None:
    """Leave the model nothing to say but plain letters: no end token, no piece of a longer character.

    The embedding is the output layer too: a row of zeros gives a logit of exactly 0, and one of hundreds of random
    rows is always above it. So every answer runs to its `max_tokens`, and each of its tokens is text at once.
    """
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    file = str(path / WEIGHTS_FILE)
    weights: Any = mx.load(file)
    rows = weights[EMBEDDING].shape[0]
    speaks = [_is_plain(tokenizer.decode([token_id])) for token_id in range(rows)]
    weights[EMBEDDING] = mx.where(mx.array(speaks)[:, None], weights[EMBEDDING], 0.0)
    mx.eval(weights)
    mx.save_safetensors(file, weights, metadata={"format": "mlx"})


def _is_plain(text: str) -> bool:
    return text != "" and text.isascii() and text.isprintable()
