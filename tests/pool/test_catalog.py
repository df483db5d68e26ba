"""Which models are found on disk, and under which ids."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mlx_manager.errors import ModelNotFound
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.pool.catalog import Catalog
from mlx_manager.mlx_server.pool.lm_studio import models_folder


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / "model.safetensors").touch()
    return folder


def snapshot(cache: Path, revision: str) -> Path:
    return make_model(cache / "models--org--name" / "snapshots" / revision)


def shard(folder: Path, *present: str) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in present:
        (folder / name).touch()


def ids(catalog: Catalog) -> list[str]:
    return [model.id for model in catalog.list()]


def test_a_model_in_a_folder_is_called_by_its_path_below_it(tmp_path: Path) -> None:
    make_model(tmp_path / "org" / "name")
    make_model(tmp_path / "alone")
    make_model(tmp_path / "a" / "b" / "c" / "too-deep")
    make_model(tmp_path / ".hidden")
    assert ids(Catalog({}, [tmp_path], None)) == ["alone", "org/name"]


def test_a_folder_that_is_itself_a_model_is_called_by_its_name(tmp_path: Path) -> None:
    [model] = Catalog({}, [make_model(tmp_path / "mine")], None).list()
    assert (model.id, model.revision) == ("mine", None)


def test_the_cache_s_main_revision_is_used_and_named(tmp_path: Path) -> None:
    for revision in ("aaa", "bbb"):
        snapshot(tmp_path, revision)
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("aaa\n")
    [model] = Catalog({}, (), tmp_path).list()
    assert (model.id, model.path.name, model.source) == ("org/name", "aaa", "hub-cache")
    assert model.revision == "aaa"


def test_without_a_main_revision_the_newest_is_used(tmp_path: Path) -> None:
    for age, revision in enumerate(("new", "old")):
        os.utime(snapshot(tmp_path, revision), (1000 - age, 1000 - age))
    [model] = Catalog({}, (), tmp_path).list()
    assert model.path.name == "new"


def test_a_download_under_way_is_not_listed(tmp_path: Path) -> None:
    shard(snapshot(tmp_path, "aaa"), "model-1.safetensors")
    assert ids(Catalog({}, (), tmp_path)) == []


def test_a_complete_sharded_download_is_listed(tmp_path: Path) -> None:
    shard(snapshot(tmp_path, "aaa"), "model-1.safetensors", "model-2.safetensors")
    assert ids(Catalog({}, (), tmp_path)) == ["org/name"]


@pytest.mark.parametrize(
    "config", ["", "{", "[]", "1", "null", '"model_type"', '["model_type"]', "{}", "\x00"]
)
def test_an_odd_config_is_no_model_and_hides_no_other(tmp_path: Path, config: str) -> None:
    (make_model(tmp_path / "odd") / "config.json").write_text(config)
    make_model(tmp_path / "good")
    assert ids(Catalog({}, [tmp_path], None)) == ["good"]


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}'])
def test_an_odd_index_is_no_model(tmp_path: Path, index: str) -> None:
    (make_model(tmp_path / "odd") / "model.safetensors.index.json").write_text(index)
    assert ids(Catalog({}, [tmp_path], None)) == []


def test_bytes_that_are_no_text_are_no_revision(tmp_path: Path) -> None:
    snapshot(tmp_path, "aaa")
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_bytes(b"\xff\xfe")
    assert ids(Catalog({}, (), tmp_path)) == ["org/name"]


def test_places_that_do_not_exist_are_empty(tmp_path: Path) -> None:
    assert ids(Catalog({"x/y": tmp_path / "no"}, [tmp_path / "nor"], tmp_path / "this")) == []


def test_the_built_in_model_wins_over_a_folder_and_a_folder_over_the_cache(tmp_path: Path) -> None:
    snapshot(tmp_path / "cache", "aaa")
    for place in ("folder", "later"):
        make_model(tmp_path / place / "org" / "name")
    built_in = make_model(tmp_path / "built-in")
    folders = [tmp_path / "folder", tmp_path / "later"]
    cache = tmp_path / "cache"
    assert Catalog({"org/name": built_in}, folders, cache).find("org/name").path == built_in
    found = Catalog({}, folders, cache).find("org/name")
    assert found.path == tmp_path / "folder" / "org" / "name"
    assert Catalog({}, (), cache).find("org/name").source == "hub-cache"


def test_what_lm_studio_has_serves_from_where_it_is_and_gives_way_to_all_others(
    tmp_path: Path,
) -> None:
    for name in ("org/name", "lmstudio-community/Other-MLX-4bit"):
        make_model(tmp_path / "models" / name)
    gguf = tmp_path / "models" / "lmstudio-community" / "Other-GGUF"
    gguf.mkdir()
    (gguf / "model.gguf").touch()
    snapshot(tmp_path / "cache", "aaa")
    found = Catalog({}, (), tmp_path / "cache", lm_studio=tmp_path / "models").list()
    assert [(one.id, one.source, one.revision) for one in found] == [
        ("lmstudio-community/Other-MLX-4bit", "lm-studio", None),
        ("org/name", "hub-cache", "aaa"),
    ]


def test_lm_studio_s_folder_is_where_it_says_or_where_it_puts_it_by_itself(tmp_path: Path) -> None:
    assert models_folder(tmp_path) is None
    old, new = tmp_path / ".cache" / "lm-studio" / "models", tmp_path / ".lmstudio" / "models"
    old.mkdir(parents=True)
    assert models_folder(tmp_path) == old
    new.mkdir(parents=True)
    assert models_folder(tmp_path) == new
    elsewhere, chosen = tmp_path / "volume" / "LM Studio", tmp_path / "chosen"
    (elsewhere / "models").mkdir(parents=True)
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{elsewhere}\n")
    assert models_folder(tmp_path) == elsewhere / "models"
    settings = elsewhere / "settings.json"
    settings.write_text(json.dumps({"downloadsFolder": str(chosen)}))
    assert models_folder(tmp_path) == elsewhere / "models", "what was chosen isn't there"
    chosen.mkdir()
    assert models_folder(tmp_path) == chosen


@pytest.mark.parametrize("settings", [b"", b"[]", b"1", b'{"downloadsFolder": 1}', b"\xff\xfe"])
def test_settings_of_lm_studio_that_can_t_be_read_name_no_folder(
    tmp_path: Path, settings: bytes
) -> None:
    home = tmp_path / ".lmstudio"
    (home / "models").mkdir(parents=True)
    (home / "settings.json").write_bytes(settings)
    (tmp_path / ".lmstudio-home-pointer").write_bytes(settings)
    assert models_folder(tmp_path) == home / "models"


def test_a_model_with_an_adapter_has_its_own_settings_or_else_those_of_the_model(
    tmp_path: Path,
) -> None:
    make_model(tmp_path / "models" / "org" / "name")
    for name in ("one", "two"):
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        (folder / "adapters.safetensors").touch()
        (folder / "adapter_config.json").write_text("{}")
    of_model, of_two = ModelSettings(context_tokens=512), ModelSettings(idle_unload_s=60)
    catalog = Catalog(
        {},
        [tmp_path / "models"],
        None,
        {"org/name": of_model, "org/name@two": of_two},
        [tmp_path / "adapters"],
    )
    assert catalog.find("org/name").settings == of_model
    assert catalog.find("org/name@one").settings == of_model
    assert catalog.find("org/name@two").settings == of_two, "and of the model's nothing"


def test_an_unknown_model_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    catalog = Catalog({}, [tmp_path], None)
    with pytest.raises(ModelNotFound, match="Models on this machine: none"):
        catalog.find("x")
    make_model(tmp_path / "one")
    make_model(tmp_path / "org" / "two")
    with pytest.raises(ModelNotFound, match=r"'x'.*one, org/two"):
        catalog.find("x")
