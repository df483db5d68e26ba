"""Prefixes in files: there after a restart, bounded, private, and never the trouble of a request."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_manager.mlx_server.engine.block_file import BlockFileCorrupt, Label, decode, encode
from mlx_manager.mlx_server.engine.prefix_disk import DiskLimits, PrefixDisk
from mlx_manager.mlx_server.engine.prefix_root import root_of
from tests.engine.driving import Driver, answer_alone
from tests.engine.models import MODEL_KINDS, VOCABULARY, WatchedModel

LOTS = 1 << 30
LIMITS = DiskLimits(LOTS, LOTS)
PROMPT = [(31 * at * at + 7 * at + 5) % VOCABULARY for at in range(600)]
BLOCK_BYTES = 256 * 2 * 2 * 2 * 16 * 4


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {kind: make() for kind, make in MODEL_KINDS.items()}


@pytest.fixture(params=MODEL_KINDS)
def any_model(request: pytest.FixtureRequest, models: dict[str, Any]) -> WatchedModel:
    return WatchedModel(models[request.param])


def answered(
    model: Any,
    folder: Path,
    *prompts: list[int],
    root: str = "root",
    limits: DiskLimits = LIMITS,
    memory: int = LOTS,
) -> tuple[Driver, PrefixDisk, list[int]]:
    """An engine that has answered some prompts and ended: what it said, and how much of each was cached."""
    disk = PrefixDisk(folder, root, limits)
    driver = Driver(model, prefix_cache_bytes=memory, prefix_disk=disk)
    ids = []
    for prompt in prompts:
        ids.append(driver.submit(prompt, borders=[300]))
        driver.finish()
    disk.close(10)
    return driver, disk, [driver.ended[one].stamps.cached_tokens for one in ids]


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_a_conversation_goes_on_warm_after_a_restart(
    any_model: WatchedModel, tmp_path: Path
) -> None:
    first, _, _ = answered(any_model, tmp_path, PROMPT)
    turns = [*PROMPT, *first.tokens[1], 7, 8, 9]
    any_model.shapes.clear()
    driver, disk, cached = answered(any_model, tmp_path, turns)
    assert cached == [len(turns) - 3]
    assert driver.tokens[1] == answer_alone(any_model, turns)
    assert disk.counts.read > 0
    assert disk.counts.corrupt == 0


def test_only_the_owner_can_read_them(lively_model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "of" / "a-model"
    answered(WatchedModel(lively_model), folder, PROMPT)
    assert len(files_in(folder)) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files_in(folder)} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_files_of_another_model_are_removed(lively_model: Any, tmp_path: Path) -> None:
    model = WatchedModel(lively_model)
    answered(model, tmp_path, PROMPT)
    before = len(files_in(tmp_path))
    _, disk, cached = answered(model, tmp_path, PROMPT, root="another")
    assert cached == [0]
    assert disk.counts.corrupt == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "renamed"])
def test_a_damaged_file_is_skipped_counted_and_removed(
    lively_model: Any, tmp_path: Path, damage: str
) -> None:
    model = WatchedModel(lively_model)
    answered(model, tmp_path, PROMPT)
    for path in files_in(tmp_path):
        data = path.read_bytes()
        if damage == "renamed":
            path.rename(path.with_name(f"{'0' * 31}{len(files_in(tmp_path))}{path.name[-14:]}"))
            continue
        damaged = {
            "cut": data[: len(data) // 2],
            "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
            "empty": b"",
            "foreign": b"not ours at all" * 100,
        }
        path.write_bytes(damaged[damage])
    driver, disk, cached = answered(model, tmp_path, PROMPT)
    assert cached == [0]
    assert driver.tokens[1] == answer_alone(model, PROMPT)
    assert disk.counts.corrupt >= 1
    _, disk, cached = answered(model, tmp_path, PROMPT)
    assert cached == [len(PROMPT) - 1]
    assert disk.counts.corrupt == 0


def test_what_memory_has_no_room_for_comes_back_from_files(
    any_model: WatchedModel, tmp_path: Path
) -> None:
    other = [(token + 1) % VOCABULARY for token in PROMPT]
    driver, _, cached = answered(any_model, tmp_path, PROMPT, other, PROMPT, memory=1)
    assert cached == [0, 0, len(PROMPT) - 1]
    assert driver.tokens[3] == driver.tokens[1] == answer_alone(any_model, PROMPT)
    assert driver.engine.vitals().prefix_cache_bytes == 0


def test_files_stay_within_their_bytes_and_the_oldest_go(lively_model: Any, tmp_path: Path) -> None:
    model, limits = WatchedModel(lively_model), DiskLimits(5 * BLOCK_BYTES, LOTS)
    prompts = [[(token + step) % VOCABULARY for token in PROMPT] for step in range(4)]
    answered(model, tmp_path, *prompts, limits=limits)
    assert 0 < sum(path.stat().st_size for path in files_in(tmp_path)) <= 5 * BLOCK_BYTES
    _, _, cached = answered(model, tmp_path, prompts[3], prompts[0], limits=limits)
    assert cached == [len(PROMPT) - 1, 0]


def test_no_more_is_written_in_a_day_than_is_allowed_also_after_a_restart(
    lively_model: Any, tmp_path: Path
) -> None:
    model, limits = WatchedModel(lively_model), DiskLimits(LOTS, 3 * BLOCK_BYTES)
    other = [(token + 1) % VOCABULARY for token in PROMPT]
    _, disk, _ = answered(model, tmp_path, PROMPT, other, limits=limits)
    assert disk.counts.written == 3 - (disk.counts.skipped > 1)
    before = files_in(tmp_path)
    _, disk, _ = answered(model, tmp_path, other, limits=limits)
    assert files_in(tmp_path) == before
    assert disk.counts.skipped > 0


def test_a_folder_that_can_not_be_written_is_counted_and_no_request_fails(
    lively_model: Any, tmp_path: Path
) -> None:
    model, blocked = WatchedModel(lively_model), tmp_path / "a-file"
    blocked.write_text("where the folder should be")
    driver, disk, cached = answered(model, blocked / "folder", PROMPT, PROMPT)
    assert cached == [0, len(PROMPT) - 1]
    assert driver.tokens[1] == answer_alone(model, PROMPT)
    assert disk.counts.failed > 0
    assert disk.counts.written == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk here")
def test_a_full_disk_is_counted_and_no_request_fails(lively_model: Any, tmp_path: Path) -> None:
    model, disk = WatchedModel(lively_model), PrefixDisk(tmp_path, "root", LIMITS)
    driver = Driver(model, prefix_cache_bytes=LOTS, prefix_disk=disk)
    label = Label("block", "root", "", tuple(PROMPT[:256]))
    (tmp_path / f"{label.key}.tmp").symlink_to("/dev/full")
    ids = []
    for _ in range(2):
        ids.append(driver.submit(PROMPT))
        driver.finish()
    disk.close(10)
    assert disk.counts.failed == 1
    assert driver.tokens[ids[1]] == driver.tokens[ids[0]] == answer_alone(model, PROMPT)
    assert not list(tmp_path.glob("*.tmp"))
    # Without its first block the rest is of no use.
    _, _, cached = answered(model, tmp_path, PROMPT)
    assert cached == [0]


def test_files_whose_parents_are_missing_go(lively_model: Any, tmp_path: Path) -> None:
    model = WatchedModel(lively_model)
    answered(model, tmp_path, PROMPT)
    Path(tmp_path / f"{Label('block', 'root', '', tuple(PROMPT[:256])).key}.safetensors").unlink()
    PrefixDisk(tmp_path, "root", LIMITS).close(1)
    _, _, cached = answered(model, tmp_path, [1, 2, 3])
    assert cached == [0]
    assert len(files_in(tmp_path)) == 1


def test_every_number_format_survives() -> None:
    label = Label("snapshot", "r", "p", (1, 2))
    formats = (mx.float32, mx.float16, mx.bfloat16, mx.uint32)
    arrays = [tuple(mx.arange(6).reshape(1, 2, 3).astype(one) for one in formats), (None,)]
    [found, nothing] = decode(label, encode(label, arrays))
    for one, other in zip(arrays[0], found, strict=True):
        assert one is not None
        assert other is not None
        assert one.dtype == other.dtype
        assert mx.array_equal(one, other).item()
    assert nothing == (None,)
    with pytest.raises(BlockFileCorrupt):
        decode(Label("snapshot", "r", "p", (1, 3)), encode(label, arrays))


def test_mlx_reads_the_files(lively_model: Any, tmp_path: Path) -> None:
    answered(WatchedModel(lively_model), tmp_path, PROMPT)
    loaded: Any = mx.load(str(files_in(tmp_path)[0]), return_metadata=True)
    assert len(loaded[0]) == 4
    assert loaded[1]["root"] == "root"


def test_whatever_decides_on_keys_and_values_is_in_the_root(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (folder / name).write_bytes(name.encode() * 50_000)
    roots = {root_of([folder], "float32"), root_of([folder], "bfloat16")}
    shutil.copytree(folder, tmp_path / "copy")
    assert root_of([tmp_path / "copy"], "float32") in roots
    for name in ("config.json", "chat_template.jinja", "model.safetensors"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + b"!")
        roots.add(root_of([folder], "float32"))
    roots.add(root_of([folder, tmp_path / "copy"], "float32"))
    assert len(roots) == 6
