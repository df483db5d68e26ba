"""How much memory this machine has for models, and in which numbers they will be computed."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

# The rest is for the system, this process and what else runs. macOS lets a GPU use about as much.
MODELS_SHARE = 0.75
# Version 2 of control groups, and version 1.
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
CUDA_PACKAGES = ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")


def default_budget_bytes() -> int:
    """Return how many bytes all models may take together, unless it was set."""
    return int(machine_bytes() * MODELS_SHARE)


def machine_bytes(limits: tuple[Path, ...] = CONTAINER_LIMITS) -> int:
    """Return the memory of the machine, or of the container when that may have less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(limit for file in limits if (limit := _limit(file)) is not None)])


def computes_in_float32() -> bool:
    """Whether engines will compute on the CPU, for which they widen weights to float32: on Linux without CUDA."""
    return sys.platform == "linux" and not any(map(_is_installed, CUDA_PACKAGES))


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # `max`, where there is none
        return None


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
