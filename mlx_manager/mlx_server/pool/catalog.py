"""Which models this machine has: the built-in one, those in the configured folders, in the Hugging Face cache and in
LM Studio's folder.

A model's id is its repository id; in a folder of one's own it is the path below that folder. `model@adapter` is a model
with a LoRA adapter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mlx_manager.errors import ModelNotFound, WrongModelKind
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.pool.adapters import SIGN, Adapter, find_adapters
from mlx_manager.mlx_server.pool.kind import ModelKind, kind_of

Source = Literal["built-in", "folder", "hub-cache", "lm-studio"]
MAX_DEPTH = 3
CACHE_PREFIX = "models--"
NOTHING_SET = ModelSettings()


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk: `path` holds `config.json` and the weights, since `created_s` (Unix time).

    `kind` is what it makes, `settings` what was set for it, `adapter` what its weights are changed by.
    """

    id: str
    path: Path
    source: Source
    created_s: int
    kind: ModelKind = "chat"
    adapter: Adapter | None = None
    settings: ModelSettings = NOTHING_SET

    @property
    def is_demonstration(self) -> bool:
        """Whether it is the built-in starter model, which nobody is to take for a capable one."""
        return self.source == "built-in"

    @property
    def revision(self) -> str | None:
        """The commit of a model from the Hugging Face cache; None elsewhere."""
        return self.path.name if self.source == "hub-cache" else None

    @property
    def edition(self) -> str:
        """What tells these files from earlier ones of the same id: their revision, or else their time."""
        own = self.revision or f"files of {self.created_s}"
        adapter = self.adapter
        return own if adapter is None else f"{own}, {adapter.name} of {adapter.created_s}"

    def read_json(self, name: str) -> dict[str, Any]:
        """Return one of the model's JSON files; empty when there is none."""
        file = self.path / name
        return dict(json.loads(file.read_text())) if file.is_file() else {}


class Catalog:
    """Finds models. Reads the disk on every call, so a model is there as soon as its files are.

    Keep it off the event loop. `models` is what was set for models by their ids.
    """

    def __init__(
        self,
        built_in: dict[str, Path],
        folders: Iterable[Path],
        hub_cache: Path | None,
        models: Mapping[str, ModelSettings] = MappingProxyType({}),
        adapter_folders: Iterable[Path] = (),
        lm_studio: Path | None = None,
    ) -> None:
        self._built_in = built_in
        self._folders = tuple(folders)
        self._lm_studio = lm_studio
        self._hub_cache = hub_cache
        self._models = models
        self._adapter_folders = tuple(adapter_folders)
        self.aliases: Mapping[str, str] = {
            alias: model_id for model_id, own in models.items() for alias in own.aliases
        }

    def list(self) -> list[ModelFiles]:
        """Return every model once, by id; the built-in one wins over a folder, a folder over the cache,
        and the cache over LM Studio's.

        A model with an adapter that was trained on it is one more.
        """
        found: dict[str, ModelFiles] = {}
        for model in self._scan():
            found.setdefault(model.id, model)
        models = self._with_adapters(found)
        return sorted(models.values(), key=lambda model: model.id.lower())

    def find(self, model_id: str) -> ModelFiles:
        """Return the model of this id, `model@adapter` or alias. Raises ModelNotFound with the ids that exist.

        Raises WrongModelKind for an adapter of a model that makes no text.
        """
        model_id = self.real_id(model_id)
        models = {model.id: model for model in self.list()}
        if model_id in models:
            return models[model_id]
        base, sign, name = model_id.rpartition(SIGN)
        if sign and base in models:
            return self._adapted(models[base], name)
        raise self._not_found(model_id, models)

    def real_id(self, name: str) -> str:
        """Return the id that a name stands for: an alias is another model's, any other name is itself."""
        return self.aliases.get(name, name)

    def _with_adapters(self, found: dict[str, ModelFiles]) -> dict[str, ModelFiles]:
        adapters = find_adapters(self._adapter_folders)
        # One whose adapter isn't there is no model: without it, it would answer differently from what was set.
        whole = {
            model.id: model
            for model in (_equipped(model, adapters) for model in found.values())
            if model is not None
        }
        fitting = [
            self._with(model, adapter)
            for adapter in adapters.values()
            for model in found.values()
            if model.kind == "chat" and adapter.base in (model.id, str(model.path))
        ]
        return whole | {model.id: model for model in fitting}

    def _adapted(self, model: ModelFiles, name: str) -> ModelFiles:
        adapters = find_adapters(self._adapter_folders)
        if name not in adapters:
            known = ", ".join(sorted(adapters)) or "none"
            raise ModelNotFound(
                f"There is no adapter {name!r} here. Adapters in MLX_SERVER_ADAPTER_DIRS: {known}.",
                param="model",
            )
        if model.kind != "chat":
            raise WrongModelKind(
                f"{model.id} makes {model.kind}; only models that make text can have an adapter.",
                param="model",
            )
        return self._with(model, adapters[name])

    def _with(self, model: ModelFiles, adapter: Adapter) -> ModelFiles:
        model_id = f"{model.id}{SIGN}{adapter.name}"
        return replace(model, id=model_id, adapter=adapter, settings=self._settings_of(model_id))

    def _settings_of(self, model_id: str) -> ModelSettings:
        """Return what was set for a model; for one with an adapter, if nothing was, what was set for it without."""
        own = self._models.get(model_id) or self._models.get(model_id.rpartition(SIGN)[0])
        return own or NOTHING_SET

    def _not_found(self, model_id: str, models: Iterable[str]) -> ModelNotFound:
        own = self._models.get(model_id)
        if own is not None and own.adapter is not None:
            return ModelNotFound(
                f"{model_id} is set to have the adapter {own.adapter!r}; either the model is not here, or no adapter "
                "of that name is in MLX_SERVER_ADAPTER_DIRS.",
                param="model",
            )
        known = ", ".join(models) or "none"
        return ModelNotFound(
            f"There is no model {model_id!r} here. Models on this machine: {known}.", param="model"
        )

    def _scan(self) -> Iterator[ModelFiles]:
        for model_id, path, source in self._places():
            created_s, config = _model_since(path)
            if created_s is not None:
                settings = self._settings_of(model_id)
                kind = kind_of(config, path)
                yield ModelFiles(model_id, path, source, created_s, kind, settings=settings)

    def _places(self) -> Iterator[tuple[str, Path, Source]]:
        for model_id, path in self._built_in.items():
            yield model_id, path, "built-in"
        for folder in self._folders:
            for model_id, path in _models_in(folder):
                yield model_id, path, "folder"
        if self._hub_cache is not None:
            for model_id, path in _downloaded(self._hub_cache):
                yield model_id, path, "hub-cache"
        if self._lm_studio is not None:
            for model_id, path in _models_in(self._lm_studio):
                yield model_id, path, "lm-studio"


def _downloaded(hub_cache: Path) -> Iterator[tuple[str, Path]]:
    for repository in sorted(hub_cache.glob(f"{CACHE_PREFIX}*--*")):
        if (snapshot := _snapshot(repository)) is not None:
            yield repository.name.removeprefix(CACHE_PREFIX).replace("--", "/", 1), snapshot


def _equipped(model: ModelFiles, adapters: Mapping[str, Adapter]) -> ModelFiles | None:
    """Return the model with the adapter that was set for it; None when there is no such adapter."""
    name = model.settings.adapter
    if name is None:
        return model
    return replace(model, adapter=adapters[name]) if name in adapters else None


def _models_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the ids and folders of what look like models: paths below `folder`, or its own name."""
    for path in _folders_with_config(folder, MAX_DEPTH):
        yield path.relative_to(folder).as_posix() if path != folder else folder.name, path


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
