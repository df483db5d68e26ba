"""One short mark for all that computes a model's answers."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from mlx_manager.mlx_server.engine.messages import Ready
from mlx_manager.mlx_server.pool.catalog import ModelFiles

COMPUTING_PACKAGES = ("mlx-manager", "mlx", "mlx-lm")
MARK_DIGITS = 12
BESIDE_WEIGHTS = ("config.json", "generation_config.json", "tokenizer.json")


@lru_cache(maxsize=1)
def computing_versions() -> tuple[str, ...]:
    """Return the versions of what computes answers."""
    return tuple(version(package) for package in COMPUTING_PACKAGES)


@lru_cache(maxsize=64)
def fingerprint(
    files: ModelFiles, ready: Ready, traits: str, versions: tuple[str, ...] | None = None
) -> str:
    """Return `fp_` and 12 hexadecimal digits of versions, model, number format and device.

    `traits` are those of the model's text: its template, and what else makes a prompt of a request. Equal marks mean
    that the same seed gives the same answer, as far as the hardware does.
    """
    own = (files.id, files.revision, files.created_s, files.adapter)
    weights = (*own, ready.weights_bytes, ready.dtype)
    computed_by = (*(versions or computing_versions()), ready.device, ready.has_fast_blas)
    digest = hashlib.sha256(repr((weights, traits, computed_by)).encode()).hexdigest()
    return f"fp_{digest[:MARK_DIGITS]}"


def traits_of(files: ModelFiles, template: object, family: str) -> str:
    """Return a digest of what makes prompts of requests: files beside the weights, and what was set for the model."""
    beside = [_file_digest(files.path / name) for name in BESIDE_WEIGHTS]
    settings = files.settings
    own = (family, settings.canonical_prompts, settings.context_tokens, settings.kv_bits)
    text = repr((template, beside, own))
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


def _file_digest(file: Path) -> str | None:
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
