"""Where LM Studio keeps its models on this machine, so that they serve from where they are.

What it does by itself (issue threads of its trackers): everything of it lies in a folder that `.lmstudio-home-pointer`
in the user's home names; `settings.json` in there has the folder of models once it was chosen by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

POINTER = ".lmstudio-home-pointer"
# Its places in the user's home, newest first: it moved with version 0.3.
HOMES = (".lmstudio", ".cache/lm-studio")


def models_folder(user_home: Path) -> Path | None:
    """Return LM Studio's folder of models, below it `publisher/model`; None where there is none."""
    for home in _homes(user_home):
        for folder in (_chosen(home), home / "models"):
            if folder is not None and folder.is_dir():
                return folder
    return None


def _homes(user_home: Path) -> list[Path]:
    named = _read(user_home / POINTER).strip()
    return [Path(named)] * bool(named) + [user_home / home for home in HOMES]


def _chosen(home: Path) -> Path | None:
    try:
        folder = json.loads(_read(home / "settings.json"))["downloadsFolder"]
        return Path(folder) if folder else None
    except (ValueError, LookupError, TypeError):
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
