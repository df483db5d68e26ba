"""Files of the prefix cache are used by the model that has written them, as it was then, and by no other."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mlx_manager.mlx_server.engine.block_file import LAYOUT_VERSION
from mlx_manager.mlx_server.engine.messages import (
    Ended,
    PrefixFiles,
    SamplingParameters,
    Step,
    Submit,
)
from mlx_manager.mlx_server.engine.prefix_disk import DiskLimits
from mlx_manager.mlx_server.engine.scheduler import Limits
from mlx_manager.mlx_server.engine.worker import make_chat_engine
from tests.support.adapters import make_random_adapter
from tools.random_model import Shape, make_random_model

MIB = 2**20
PROMPT = list(itertools.islice(itertools.cycle(range(40, 500)), 300))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and an adapter for it."""
    folder = tmp_path_factory.mktemp("made")
    make_random_adapter(make_random_model(folder / "model"), "model", folder / "adapter")
    return folder


@pytest.fixture
def there(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "prefixes" / "a-model").glob("*.safetensors"))


def answered(folder: Path, adapter: str | None = None) -> tuple[int, PrefixFiles]:
    """Have a worker's engine answer: how much of the prompt was stored, and what became of files."""
    disk = folder / "prefixes" / "a-model", DiskLimits(8 * MIB, 8 * MIB)
    awake = threading.Event()
    engine, _ = make_chat_engine(
        folder / "model",
        Limits(4, 256, 256),
        MIB,
        awake.set,
        folder / adapter if adapter else None,
        prefix_disk=disk,
        shared_bytes=4 * MIB,
    )
    with closing(engine):
        engine.handle(Submit(1, PROMPT, 2, [], SamplingParameters()))
        ended = list[Ended]()
        while not ended:
            # It is woken by what it waits for: a file that was read.
            assert engine.has_work or awake.wait(30)
            awake.clear()
            step = engine.step()
            assert isinstance(step, Step)
            ended += step.ended
        files = engine.vitals().prefix_files
    assert files is not None
    return ended[0].stamps.cached_tokens, files


def test_a_model_goes_on_from_its_own_files(there: Path) -> None:
    assert answered(there)[0] == 0
    cached, files = answered(there)
    assert cached == len(PROMPT) - 1
    assert files.corrupt == 0


def test_an_adapter_uses_no_files_of_the_model_without_it_nor_of_another_and_removes_them(
    there: Path,
) -> None:
    make_random_adapter(there / "model", "model", there / "other", seed=8)
    for adapter in (None, "adapter", "other", None):
        before = files_of(there)
        cached, files = answered(there, adapter)
        assert cached == 0
        assert files.corrupt == len(before)
        assert not set(before) & set(files_of(there))
    assert answered(there)[0] == len(PROMPT) - 1


def change_template(folder: Path) -> None:
    config = folder / "model" / "tokenizer_config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"chat_template": told["chat_template"] + " "}))


def change_weights(folder: Path) -> None:
    make_random_model(folder / "model", Shape(seed=1))


def change_layout(folder: Path) -> None:
    """Have files say that another version has laid them out."""
    for path in files_of(folder):
        ours, theirs = (f'"layout":"{one}"'.encode() for one in (LAYOUT_VERSION, 0))
        assert ours in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(ours, theirs))


@pytest.mark.parametrize("change", [change_template, change_weights, change_layout])
def test_files_from_before_a_change_are_skipped_counted_and_removed(
    there: Path, change: Callable[[Path], None]
) -> None:
    answered(there)
    before = files_of(there)
    assert before
    change(there)
    cached, files = answered(there)
    assert cached == 0
    assert files.corrupt == len(before)
    assert files.read == 0
    assert answered(there)[0] == len(PROMPT) - 1, "those of after it are used"
