"""Bring a model's weights into memory, in the number format that is fast on this device."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from mlx_manager.mlx_server.engine.messages import Ready

MAPPINGS = Path("/proc/self/maps")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The model, and the facts that the API process wants to know about it."""

    model: Any
    ready: Ready


def load(path: Path) -> LoadedModel:
    """Load the model in `path` (mlx-lm's format). Must run in the thread that will generate.

    On a CPU the weights become float32: MLX's CPU backend computes bfloat16 and float16 4 to 30 times slower, and
    quantised weights with bfloat16 scales 8 to 10 times slower.
    """
    began_s = time.monotonic()
    model, _config = load_model(path)
    for_this_device(model)
    return LoadedModel(model, ready(model, began_s))


def for_this_device(model: Any) -> None:
    """Give the weights the number format that is fast here, and read them now."""
    if mx.default_device() == mx.cpu:
        model.set_dtype(mx.float32)
    mx.eval(model.parameters())


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
