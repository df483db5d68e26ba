"""Which models this machine has: the built-in one, those in the configured folders, those in the Hugging Face cache.

A model's id is its repository id; in a folder of one's own it is the path below that folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlx_manager.errors import ModelNotFound
from mlx_manager.mlx_server.pool.kind import ModelKind, kind_of

Source = Literal["built-in", "folder", "hub-cache"]
MAX_DEPTH = 3
CACHE_PREFIX = "models--"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk: `path` holds `config.json` and the weights, since `created_s` (Unix time).

    `kind` is what it makes.
    """

    id: str
    path: Path
    source: Source
    created_s: int
    kind: ModelKind = "chat"

    @property
    def revision(self) -> str | None:
        """The commit of a model from the Hugging Face cache; None elsewhere."""
        return self.path.name if self.source == "hub-cache" else None

    @property
    def edition(self) -> str:
        """What tells these files from earlier ones of the same id: their revision, or else their time."""
        return self.revision or f"files of {self.created_s}"

    def read_json(self, name: str) -> dict[str, Any]:
        """Return one of the model's JSON files; empty when there is none."""
        file = self.path / name
        return dict(json.loads(file.read_text())) if file.is_file() else {}


class Catalog:
    """Finds models. Reads the disk on every call, so a model is there as soon as its files are.

    Keep it off the event loop.
    """

    def __init__(
        self, built_in: dict[str, Path], folders: Iterable[Path], hub_cache: Path | None
    ) -> None:
        self._built_in = built_in
        self._folders = tuple(folders)
        self._hub_cache = hub_cache

    def list(self) -> list[ModelFiles]:
        """Return every model once, by id; the built-in one wins over a folder, a folder over the cache."""
        found: dict[str, ModelFiles] = {}
        for model in self._scan():
            found.setdefault(model.id, model)
        return sorted(found.values(), key=lambda model: model.id.lower())

    def find(self, model_id: str) -> ModelFiles:
        """Return the model of this id. Raises ModelNotFound with the ids that exist."""
        models = self.list()
        for model in models:
            if model.id == model_id:
                return model
        known = ", ".join(model.id for model in models) or "none"
        raise ModelNotFound(
            f"There is no model {model_id!r} here. Models on this machine: {known}.", param="model"
        )

    def _scan(self) -> Iterator[ModelFiles]:
        for model_id, path, source in self._places():
            created_s, config = _model_since(path)
            if created_s is not None:
                yield ModelFiles(model_id, path, source, created_s, kind_of(config, path))

    def _places(self) -> Iterator[tuple[str, Path, Source]]:
        for model_id, path in self._built_in.items():
            yield model_id, path, "built-in"
        for folder in self._folders:
            for path in _folders_with_config(folder, MAX_DEPTH):
                model_id = path.relative_to(folder).as_posix() if path != folder else folder.name
                yield model_id, path, "folder"
        if self._hub_cache is not None:
            for repository in sorted(self._hub_cache.glob(f"{CACHE_PREFIX}*--*")):
                model_id = repository.name.removeprefix(CACHE_PREFIX).replace("--", "/", 1)
                if (snapshot := _snapshot(repository)) is not None:
                    yield model_id, snapshot, "hub-cache"


def _folders_with_config(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders at most `depth` levels down that hold a `config.json`; not those inside one of them."""
    if (folder / "config.json").is_file():
        yield folder
    elif depth > 0 and folder.is_dir():
        for child in _subfolders(folder):
            yield from _folders_with_config(child, depth - 1)


def _subfolders(folder: Path) -> list[Path]:
    """Return the visible folders in `folder`; none when it may not be read."""
    try:
        return sorted(
            child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
        )
    except PermissionError:
        return []


def _snapshot(repository: Path) -> Path | None:
    """Return the revision that `main` names, else the newest one; None when there is none."""
    main = repository / "refs" / "main"
    if main.is_file():
        named = repository / "snapshots" / main.read_text(errors="replace").strip()
        if named.is_dir():
            return named
    snapshots = repository.glob("snapshots/*")
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _model_since(folder: Path) -> tuple[int | None, dict[str, Any]]:
    """Return since when the folder is a model, and its config: one that names an architecture, with all weight files
    that its index names. None when it isn't one (a download under way, say).
    """
    config, index = folder / "config.json", folder / "model.safetensors.index.json"
    try:
        settings = json.loads(config.read_text())
        if not isinstance(settings, dict) or "model_type" not in settings:
            return None, {}
        if index.is_file():
            names = set(json.loads(index.read_text())["weight_map"].values())
            is_complete = all((folder / name).is_file() for name in names)
        else:
            is_complete = next(folder.glob("model*.safetensors"), None) is not None
        return (int(config.stat().st_mtime) if is_complete else None), settings
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None, {}
