"""One short mark for all that computes a model's answers."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.metadata import version

from mlx_manager.mlx_server.engine.messages import Ready
from mlx_manager.mlx_server.pool.catalog import ModelFiles

COMPUTING_PACKAGES = ("mlx-manager", "mlx", "mlx-lm")
MARK_DIGITS = 12


@lru_cache(maxsize=64)
def fingerprint(files: ModelFiles, ready: Ready) -> str:
    """Return `fp_` and 12 hexadecimal digits of versions, model, number format and device.

    Equal marks mean that the same seed gives the same answer, as far as the hardware does.
    """
    own = (files.id, files.revision, files.created_s, files.adapter)
    weights = (*own, ready.weights_bytes, ready.dtype)
    versions = tuple(version(package) for package in COMPUTING_PACKAGES)
    computed_by = (*versions, ready.device, ready.has_fast_blas)
    digest = hashlib.sha256(repr((weights, computed_by)).encode()).hexdigest()
    return f"fp_{digest[:MARK_DIGITS]}"
