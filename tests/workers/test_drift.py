"""An mlx-lm that has changed loads no model, and says what is missing and which one to install."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_manager.errors import ModelLoadFailed
from tests.workers.processes import engine_pids, started

# What Python imports by itself when an engine process starts.
DRIFT = """
from mlx_manager.mlx_server.engine.absent import left_out
with left_out():
    from importlib import import_module
    generate, cache = import_module("mlx_lm.generate"), import_module("mlx_lm.models.cache")
    del {name}
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("generate.BatchGenerator.extract_cache", "missing: extract_cache"),
        ("generate.BatchGenerator._make_batch", "missing: _make_batch"),
        ("generate.StopSequences", "StopSequences"),
        ("cache.CacheList", "CacheList"),
    ],
)
async def test_a_changed_mlx_lm_is_a_failed_load_that_names_the_change_and_the_remedy(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DRIFT.format(name=name))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    before = engine_pids()

    with pytest.raises(ModelLoadFailed) as failed:
        async with started(tiny):
            pass

    assert said in failed.value.message
    assert "requirements.lock" in failed.value.message
    assert engine_pids() == before
