"""Bring a model's weights into memory, in the number format that is fast on this device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

from mlx_manager.mlx_server.engine.messages import Loading, Ready

MAPPINGS = Path("/proc/self/maps")
# Weights are read in pieces of about this size, and told of this often at most, after the first one.
PIECE_BYTES = 16 * 2**20
TELL_EVERY_S = 0.2

Tell = Callable[[Loading], None]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The model, and the facts that the API process wants to know about it."""

    model: Any
    ready: Ready


def load(path: Path, adapter: Path | None = None, tell: Tell | None = None) -> LoadedModel:
    """Load the model in `path` (mlx-lm's format), and `adapter` onto it. Must run in the thread that will generate.

    On a CPU the weights become float32: MLX's CPU backend computes bfloat16 and float16 4 to 30 times slower, and
    quantised weights with bfloat16 scales 8 to 10 times slower. `tell` is told how far they have come.
    """
    began_s = time.monotonic()
    model, _config = load_model(path, lazy=True)
    if adapter is not None:
        load_adapters(model, str(adapter))
        # Its layers were made for training: they'd drop some of what they compute.
        model.eval()
    for_this_device(model, tell)
    return LoadedModel(model, ready(model, began_s))


def for_this_device(
    model: Any, tell: Tell | None = None, tell_every_s: float = TELL_EVERY_S
) -> None:
    """Give the weights the number format that is fast here, and read them now."""
    if mx.default_device() == mx.cpu:
        model.set_dtype(mx.float32)
    parameters: Any = tree_flatten(model.parameters())
    arrays = [array for _name, array in parameters]
    total_bytes = sum(array.nbytes for array in arrays)
    loaded_bytes, told_s = 0, float("-inf")
    for piece in _pieces(arrays):
        mx.eval(piece)
        loaded_bytes += sum(array.nbytes for array in piece)
        if tell is not None and (now_s := time.monotonic()) - told_s >= tell_every_s:
            tell(Loading(loaded_bytes, total_bytes))
            told_s = now_s


def _pieces(arrays: list[mx.array]) -> Iterator[list[mx.array]]:
    piece, size = list[mx.array](), 0
    for array in arrays:
        piece.append(array)
        size += array.nbytes
        if size >= PIECE_BYTES:
            yield piece
            piece, size = [], 0
    yield piece


def ready(model: Any, began_s: float) -> Ready:
    """Return what the API process is told of a model whose loading began at `began_s`, in monotonic seconds."""
    parameters: Any = tree_flatten(model.parameters())
    arrays = [array for _name, array in parameters]
    floats = [array.dtype for array in arrays if mx.issubdtype(array.dtype, mx.floating)]
    return Ready(
        weights_bytes=sum(array.nbytes for array in arrays),
        dtype=str(floats[0]).removeprefix("mlx.core.") if floats else "unknown",
        device=str(mx.default_device().type).removeprefix("DeviceType."),
        has_fast_blas=_has_fast_blas(),
        load_s=time.monotonic() - began_s,
    )


def _has_fast_blas() -> bool:
    """Whether matrix products run through OpenBLAS or a GPU, not through the reference BLAS of MLX's Linux wheel."""
    if not MAPPINGS.exists() or mx.default_device() != mx.cpu:
        return True
    return "openblas" in MAPPINGS.read_text()
