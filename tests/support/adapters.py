"""Random LoRA adapters, made by mlx-lm's own tuner, and models that have one fused into their weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model, save_model

LAYERS = 2
# Dropout is for training: a server that left it on would answer differently each time.
PARAMETERS = {"rank": 4, "scale": 6.0, "dropout": 0.5}


def make_random_adapter(model: Path, base: str, folder: Path, seed: int = 7) -> Path:
    """Write an adapter for the model in `model`, known as `base`, into `folder`, as `mlx_lm.lora` does."""
    changed = _with_lora(model, seed)
    folder.mkdir(parents=True)
    weights = dict(tree_flatten(changed.trainable_parameters()))
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": LAYERS, "lora_parameters": PARAMETERS}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"model": base}))
    return folder


def make_fused_model(model: Path, folder: Path, seed: int = 7) -> Path:
    """Write the model with that adapter in its weights into `folder`, as `mlx_lm.fuse` does."""
    changed = _with_lora(model, seed)
    modules = [(name, one.fuse()) for name, one in changed.named_modules() if hasattr(one, "fuse")]
    changed.update_modules(tree_unflatten(modules))
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    save_model(folder, changed)
    return folder


def _with_lora(path: Path, seed: int) -> Any:
    model: Any
    model, _config = load_model(path)
    model.freeze()
    linear_to_lora_layers(model, LAYERS, PARAMETERS)
    mx.random.seed(seed)
    trained: Any = tree_flatten(model.trainable_parameters())
    drawn = [(name, mx.random.normal(array.shape) * 0.2) for name, array in trained]
    model.update(tree_unflatten(drawn))
    return model
