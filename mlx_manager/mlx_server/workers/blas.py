"""Find OpenBLAS for engine processes on Linux without a GPU.

MLX's Linux wheel links the single-threaded reference BLAS. Preloading OpenBLAS in its place makes float32 matrix
products, and with them reading a prompt, about 20 times faster.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

# OpenBLAS's threads spin for a while after each product, in case another comes (2 to the power of 26 ticks by default).
# Between the small products of decoding they only take the cores away from the rest: docs/decisions/0005.
SLEEP_AT_ONCE = "4"

LIBRARY_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
# Only these export the plain CBLAS names that mlx links; the openblas64 flavours don't.
PATTERNS = (
    "*/openblas-pthread/libblas.so.3",
    "*/openblas-openmp/libblas.so.3",
    "*/openblas-serial/libblas.so.3",
    "libopenblas.so.0",
    "*/libopenblas.so.0",
)


def find_openblas(folders: tuple[str, ...] = LIBRARY_FOLDERS) -> Path | None:
    """Return an installed OpenBLAS that can stand in for mlx's BLAS; None on a Mac and where there is none."""
    if sys.platform != "linux":
        return None
    candidates = (
        path for pattern in PATTERNS for folder in folders for path in Path(folder).glob(pattern)
    )
    return next(candidates, None)


def engine_environment(environment: Mapping[str, str], library: Path | None) -> dict[str, str]:
    """Return the environment of an engine process: the given one, with the library preloaded first."""
    quiet = {**environment, "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    if library is None:
        return quiet
    preloads = [str(library), *environment.get("LD_PRELOAD", "").split()]
    return {
        "OPENBLAS_THREAD_TIMEOUT": SLEEP_AT_ONCE,
        **quiet,
        "LD_PRELOAD": " ".join(preloads),
    }
