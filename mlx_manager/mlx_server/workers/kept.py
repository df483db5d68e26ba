"""What an engine process may keep of prompts, as its command line says it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PrefixDiskOptions:
    """Where the prefix cache's files are, each model's in a folder of its own, and how many bytes of a model's."""

    folder: Path
    max_bytes: int
    max_daily_bytes: int


def kept_arguments(
    kv_budget_bytes: int | None, disk: PrefixDiskOptions | None, model_id: str
) -> Iterator[str]:
    """Yield the arguments; what isn't set has none."""
    if kv_budget_bytes is not None:
        yield from ("--kv-budget-bytes", str(kv_budget_bytes))
    if disk is not None:
        folder = disk.folder / re.sub(r"[^A-Za-z0-9._-]+", "--", model_id).lstrip(".")
        yield from ("--prefix-disk", str(folder))
        yield from ("--prefix-disk-bytes", f"{disk.max_bytes},{disk.max_daily_bytes}")
