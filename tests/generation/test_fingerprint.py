"""What `system_fingerprint` depends on: all that computes an answer, and nothing of a request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_manager.mlx_server.engine.messages import Ready
from mlx_manager.mlx_server.generation.fingerprint import computing_versions, fingerprint
from mlx_manager.mlx_server.generation.model_text import load_model_text
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.pool.adapters import Adapter
from mlx_manager.mlx_server.pool.catalog import ModelFiles

READY = Ready(weights_bytes=1000, dtype="float32", device="cpu", has_fast_blas=True)


@pytest.fixture
def files(model_dir: Path, tmp_path: Path) -> ModelFiles:
    """The tiny model in a folder, whose time stays as it is when a file in it is changed."""
    return ModelFiles(
        "m", shutil.copytree(model_dir / "test" / "tiny", tmp_path / "m"), "folder", 5
    )


def mark_of(files: ModelFiles, ready: Ready = READY) -> str:
    return fingerprint(files, ready, load_model_text(files).traits)


def changed(files: ModelFiles, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    file = files.path / name
    found = json.loads(file.read_text()) if file.is_file() else {}
    change(found)
    file.write_text(json.dumps(found))


def test_the_same_model_has_the_same_mark(files: ModelFiles) -> None:
    assert mark_of(files) == mark_of(files)


@pytest.mark.parametrize(
    "other",
    [
        lambda files: replace(files, id="n"),
        lambda files: replace(files, created_s=6),
        lambda files: replace(files, adapter=Adapter("a", files.path, 1)),
        lambda files: replace(files, settings=ModelSettings(canonical_prompts=True)),
        lambda files: replace(files, settings=ModelSettings(family="mistral")),
        lambda files: replace(files, settings=ModelSettings(kv_bits=8)),
    ],
    ids=[
        "model",
        "newer files",
        "adapter",
        "canonical prompts",
        "family",
        "bits of keys and values",
    ],
)
def test_another_model_has_another_mark(
    files: ModelFiles, other: Callable[[ModelFiles], ModelFiles]
) -> None:
    assert mark_of(other(files)) != mark_of(files)


def test_another_adapter_has_another_mark(files: ModelFiles) -> None:
    adapters = (
        Adapter("a", files.path, 1),
        Adapter("b", files.path, 1),
        Adapter("a", files.path, 2),
    )
    assert len({mark_of(replace(files, adapter=one)) for one in adapters}) == 3


@pytest.mark.parametrize(
    "ready",
    [
        Ready(weights_bytes=999, dtype="float32", device="cpu", has_fast_blas=True),
        Ready(weights_bytes=1000, dtype="bfloat16", device="cpu", has_fast_blas=True),
        Ready(weights_bytes=1000, dtype="float32", device="gpu", has_fast_blas=True),
        Ready(weights_bytes=1000, dtype="float32", device="cpu", has_fast_blas=False),
    ],
    ids=["weights", "number format", "device", "BLAS"],
)
def test_what_computes_in_another_way_has_another_mark(files: ModelFiles, ready: Ready) -> None:
    assert mark_of(files, ready) != mark_of(files)


def test_another_template_has_another_mark(files: ModelFiles) -> None:
    before = mark_of(files)
    (files.path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert mark_of(files) != before


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("config.json", {"quantization": {"bits": 4, "group_size": 64}}),
        ("generation_config.json", {"temperature": 0.3}),
    ],
)
def test_other_quantisation_or_sampling_of_its_makers_has_another_mark(
    files: ModelFiles, name: str, fields: dict[str, Any]
) -> None:
    before = mark_of(files)
    changed(files, name, lambda found: found.update(fields))
    assert mark_of(files) != before


def test_each_version_of_what_computes_has_its_own_mark(files: ModelFiles) -> None:
    traits = load_model_text(files).traits
    own = computing_versions()
    others = {
        fingerprint(
            files,
            READY,
            traits,
            tuple(f"{one}.1" if at == index else one for at, one in enumerate(own)),
        )
        for index in range(len(own))
    }
    assert len({*others, fingerprint(files, READY, traits, own), mark_of(files)}) == len(own) + 1
