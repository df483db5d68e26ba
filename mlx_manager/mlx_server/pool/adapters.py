"""LoRA adapters on this machine, in mlx-lm's format: a folder with `adapter_config.json` and `adapters.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
MAX_DEPTH = 2
# Between a model's id and an adapter's name.
SIGN = "@"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on disk, there since `created_s` (Unix time). `base` is the model that its maker trained it on."""

    name: str
    path: Path
    created_s: int
    base: str | None = None


def find_adapters(folders: Iterable[Path]) -> dict[str, Adapter]:
    """Return the adapters in the folders by name, which is the path below the folder; the first of a name wins."""
    found = dict[str, Adapter]()
    for folder in folders:
        for path in _adapter_folders(folder, MAX_DEPTH):
            name = path.relative_to(folder).as_posix() if path != folder else folder.name
            if (adapter := _read(name, path)) is not None:
                found.setdefault(name, adapter)
    return found


def _adapter_folders(folder: Path, depth: int) -> Iterator[Path]:
    try:
        if (folder / WEIGHTS).is_file():
            yield folder
        elif depth > 0 and folder.is_dir():
            for child in sorted(folder.iterdir()):
                if not child.name.startswith("."):
                    yield from _adapter_folders(child, depth - 1)
    except PermissionError:
        return


def _read(name: str, path: Path) -> Adapter | None:
    """Return the adapter; None when its config is absent or none (its training is under way, say)."""
    try:
        config = json.loads((path / CONFIG).read_text())
        created_s = int((path / WEIGHTS).stat().st_mtime)
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    base = config.get("model")
    return Adapter(name, path, created_s, base if isinstance(base, str) else None)
