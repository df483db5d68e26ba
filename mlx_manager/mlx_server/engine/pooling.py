"""From the hidden states of an input to its vector, as the model's own files say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import mlx.core as mx

Mode = Literal["mean", "cls", "lasttoken", "max"]
# How older files say it: one true field of several.
FIELDS: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """Which hidden states make the vector, and whether its length becomes 1.

    Without files that say so: their mean, at its own length, as sentence-transformers has it.
    """

    mode: Mode = "mean"
    is_normalised: bool = False

    def __call__(self, states: mx.array, mask: mx.array, dimensions: int | None = None) -> mx.array:
        """Return `[rows, dimensions]` in float32 from states `[rows, tokens, hidden]`; `mask` is true for real tokens.

        With `dimensions` only that many numbers of a vector are kept, before its length becomes 1.
        """
        vectors = self._pooled(states.astype(mx.float32), mask)[:, :dimensions]
        if not self.is_normalised:
            return vectors
        return vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)

    def _pooled(self, states: mx.array, mask: mx.array) -> mx.array:
        match self.mode:
            case "cls":
                return states[:, 0]
            case "lasttoken":
                return states[mx.arange(len(states)), mask.sum(axis=1) - 1]
            case "max":
                return mx.where(mask[..., None], states, -mx.inf).max(axis=1)
            case "mean":
                counted = mask[..., None].astype(mx.float32)
                return (states * counted).sum(axis=1) / counted.sum(axis=1)


def read_pooling(folder: Path) -> Pooling:
    """Read what sentence-transformers keeps beside a model. Raises ValueError for steps that aren't computed here."""
    steps = _read(folder / "modules.json") or [{"type": "Pooling", "path": "1_Pooling"}]
    mode, is_normalised = Pooling().mode, False
    for step in steps:
        match str(step["type"]).rpartition(".")[2]:
            case "Transformer":
                pass
            case "Pooling":
                mode = _mode(_read(folder / step["path"] / "config.json") or {})
            case "Normalize":
                is_normalised = True
            case other:
                raise ValueError(f"the step {other!r} of modules.json is not supported")
    return Pooling(mode, is_normalised)


def _mode(config: dict[str, Any]) -> Mode:
    if config.get("include_prompt") is False:
        raise ValueError("pooling that leaves the prompt out is not supported")
    named = config.get("pooling_mode")
    modes = [named] if named else [name for name, is_on in config.items() if _is_mode(name, is_on)]
    if not modes:
        return Pooling().mode
    mode = FIELDS.get(modes[0]) or next((one for one in get_args(Mode) if one == modes[0]), None)
    if len(modes) > 1 or mode is None:
        raise ValueError(f"pooling by {' and '.join(map(str, modes))} is not supported")
    return mode


def _is_mode(name: str, is_on: object) -> bool:
    return name.startswith("pooling_mode_") and is_on is True


def _read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else None
