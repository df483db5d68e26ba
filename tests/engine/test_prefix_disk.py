"""Prefixes in files: there after a restart, bounded, private, and never the trouble of a request."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_manager.mlx_server.engine.block_file import (
    LAYOUT_VERSION,
    BlockFileCorrupt,
    Label,
    decode,
    encode,
)
from mlx_manager.mlx_server.engine.prefix_disk import DiskLimits, PrefixDisk
from mlx_manager.mlx_server.engine.prefix_root import digest_of, root_of
from mlx_manager.mlx_server.engine.row_state import kinds_of
from tests.engine.driving import Driver, answer_alone
from tests.engine.models import VOCABULARY, WatchedModel

LOTS = 1 << 30
LIMITS = DiskLimits(LOTS, LOTS)
PROMPT = [(31 * at * at + 7 * at + 5) % VOCABULARY for at in range(600)]
BLOCK_BYTES = 256 * 2 * 2 * 2 * 16 * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """That of one model's files."""
    return tmp_path / "all" / "a-model"


def answered(
    model: Any,
    folder: Path,
    *prompts: list[int],
    root: str = "root",
    limits: DiskLimits = LIMITS,
    memory: int = LOTS,
) -> tuple[Driver, PrefixDisk, list[int]]:
    """An engine that has answered some prompts and ended: what it said, and how much of each was cached."""
    disk = PrefixDisk(folder.parent, folder.name, root, limits)
    driver = Driver(model, prefix_cache_bytes=memory, prefix_disk=disk)
    ids = []
    for prompt in prompts:
        ids.append(driver.submit(prompt, borders=[300]))
        driver.finish()
    disk.close(10)
    return driver, disk, [driver.ended[one].stamps.cached_tokens for one in ids]


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_a_conversation_goes_on_warm_after_a_restart(any_model: WatchedModel, folder: Path) -> None:
    first, _, _ = answered(any_model, folder, PROMPT)
    turns = [*PROMPT, *first.tokens[1], 7, 8, 9]
    any_model.shapes.clear()
    driver, disk, cached = answered(any_model, folder, turns)
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


def test_files_of_another_model_are_removed(lively_model: Any, folder: Path) -> None:
    model = WatchedModel(lively_model)
    answered(model, folder, PROMPT)
    before = len(files_in(folder))
    _, disk, cached = answered(model, folder, PROMPT, root="another")
    assert cached == [0]
    assert disk.counts.corrupt == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "renamed"])
def test_a_damaged_file_is_skipped_counted_and_removed(
    lively_model: Any, folder: Path, damage: str
) -> None:
    model = WatchedModel(lively_model)
    answered(model, folder, PROMPT)
    for path in files_in(folder):
        data = path.read_bytes()
        if damage == "renamed":
            path.rename(path.with_name(f"{'0' * 31}{len(files_in(folder))}{path.name[-14:]}"))
            continue
        damaged = {
            "cut": data[: len(data) // 2],
            "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
            "empty": b"",
            "foreign": b"not ours at all" * 100,
        }
        path.write_bytes(damaged[damage])
    driver, disk, cached = answered(model, folder, PROMPT)
    assert cached == [0]
    assert driver.tokens[1] == answer_alone(model, PROMPT)
    assert disk.counts.corrupt >= 1
    _, disk, cached = answered(model, folder, PROMPT)
    assert cached == [len(PROMPT) - 1]
    assert disk.counts.corrupt == 0


def lay_out_differently(path: Path) -> None:
    """Say in a file that it has another layout, and change nothing else."""
    before = path.read_bytes()
    after = before.replace(f'"layout":"{LAYOUT_VERSION}"'.encode(), b'"layout":"0"')
    assert after != before
    path.write_bytes(after)


def test_files_of_another_layout_are_skipped_counted_and_removed(
    lively_model: Any, folder: Path
) -> None:
    model = WatchedModel(lively_model)
    answered(model, folder, PROMPT)
    theirs = files_in(folder)
    for path in theirs:
        lay_out_differently(path)
    disk = PrefixDisk(folder.parent, folder.name, "root", LIMITS)
    assert list(disk.scan()) == []
    disk.close(10)
    assert disk.counts.corrupt == len(theirs) == 3
    assert files_in(folder) == []
    driver, disk, cached = answered(model, folder, PROMPT)
    assert cached == [0]
    assert driver.tokens[1] == answer_alone(model, PROMPT)
    assert answered(model, folder, PROMPT)[2] == [len(PROMPT) - 1]


def test_a_file_that_gets_another_layout_while_it_is_known_is_read_by_nobody(
    lively_model: Any, folder: Path
) -> None:
    """A newer version writes to the same folder: the label says the same, and the bytes mean something else."""
    label, array = Label("block", "root", "", (1, 2)), mx.ones((1, 2))
    disk = PrefixDisk(folder.parent, folder.name, "root", LIMITS)
    disk.write(label, [(array,)])
    disk.close(10)
    [path] = files_in(folder)
    lay_out_differently(path)
    assert disk.read(label) is None
    assert disk.counts.corrupt == 1
    assert files_in(folder) == []


def test_what_memory_has_no_room_for_comes_back_from_files(
    any_model: WatchedModel, folder: Path
) -> None:
    other = [(token + 1) % VOCABULARY for token in PROMPT]
    driver, _, cached = answered(any_model, folder, PROMPT, other, PROMPT, memory=1)
    assert cached == [0, 0, len(PROMPT) - 1]
    assert driver.tokens[3] == driver.tokens[1] == answer_alone(any_model, PROMPT)
    assert driver.engine.vitals().prefix_cache_bytes == 0


def test_files_stay_within_their_bytes_and_the_oldest_go(lively_model: Any, folder: Path) -> None:
    model, limits = WatchedModel(lively_model), DiskLimits(5 * BLOCK_BYTES, LOTS)
    prompts = [[(token + step) % VOCABULARY for token in PROMPT] for step in range(4)]
    answered(model, folder, *prompts, limits=limits)
    assert 0 < sum(path.stat().st_size for path in files_in(folder)) <= 5 * BLOCK_BYTES
    _, _, cached = answered(model, folder, prompts[3], prompts[0], limits=limits)
    assert cached == [len(PROMPT) - 1, 0]


def test_no_more_is_written_in_a_day_than_is_allowed_also_after_a_restart(
    lively_model: Any, folder: Path
) -> None:
    model, limits = WatchedModel(lively_model), DiskLimits(LOTS, 3 * BLOCK_BYTES)
    other = [(token + 1) % VOCABULARY for token in PROMPT]
    _, disk, _ = answered(model, folder, PROMPT, other, limits=limits)
    assert disk.counts.written == 3 - (disk.counts.skipped > 1)
    before = files_in(folder)
    _, disk, _ = answered(model, folder, other, limits=limits)
    assert files_in(folder) == before
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
def test_a_full_disk_is_counted_and_no_request_fails(lively_model: Any, folder: Path) -> None:
    model = WatchedModel(lively_model)
    disk = PrefixDisk(folder.parent, folder.name, "root", LIMITS)
    driver = Driver(model, prefix_cache_bytes=LOTS, prefix_disk=disk)
    label = Label("block", "root", "", tuple(PROMPT[:256]))
    folder.mkdir(parents=True)
    (folder / f"{label.key}.tmp").symlink_to("/dev/full")
    ids = []
    for _ in range(2):
        ids.append(driver.submit(PROMPT))
        driver.finish()
    disk.close(10)
    assert disk.counts.failed == 1
    assert driver.tokens[ids[1]] == driver.tokens[ids[0]] == answer_alone(model, PROMPT)
    assert not list(folder.glob("*.tmp"))
    # Without its first block the rest is of no use.
    _, _, cached = answered(model, folder, PROMPT)
    assert cached == [0]


def test_files_whose_parents_are_missing_go(lively_model: Any, folder: Path) -> None:
    model = WatchedModel(lively_model)
    answered(model, folder, PROMPT)
    Path(folder / f"{Label('block', 'root', '', tuple(PROMPT[:256])).key}.safetensors").unlink()
    PrefixDisk(folder.parent, folder.name, "root", LIMITS).close(1)
    _, _, cached = answered(model, folder, [1, 2, 3])
    assert cached == [0]
    assert len(files_in(folder)) == 1


def test_every_number_format_survives() -> None:
    label = Label("snapshot", "r", "p", (1, 2))
    formats = (mx.float32, mx.float16, mx.bfloat16, mx.uint32)
    arrays = [tuple(mx.arange(6).reshape(1, 2, 3).astype(one) for one in formats), (None,)]
    [found, nothing] = decode(label, encode(label, arrays)).arrays()
    for one, other in zip(arrays[0], found, strict=True):
        assert one is not None
        assert other is not None
        assert one.dtype == other.dtype
        assert mx.array_equal(one, other).item()
    assert nothing == (None,)
    with pytest.raises(BlockFileCorrupt):
        decode(Label("snapshot", "r", "p", (1, 3)), encode(label, arrays))


def test_mlx_reads_the_files(lively_model: Any, folder: Path) -> None:
    answered(WatchedModel(lively_model), folder, PROMPT)
    loaded: Any = mx.load(str(files_in(folder)[0]), return_metadata=True)
    assert len(loaded[0]) == 4
    assert loaded[1]["root"] == "root"


def test_whatever_decides_on_keys_and_values_is_in_the_root(tmp_path: Path) -> None:
    folder, kept = tmp_path / "model", tmp_path / "kept"

    def root(*folders: Path, dtype: str = "float32", kv_bits: int | None = None) -> str:
        return root_of(digest_of(folders, kept), dtype, kv_bits)

    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (folder / name).write_bytes(name.encode() * 50_000)
    roots = {root(folder), root(folder, dtype="bfloat16")}
    roots |= {root(folder, kv_bits=8), root(folder, kv_bits=4)}
    shutil.copytree(folder, tmp_path / "copy")
    assert root(tmp_path / "copy") in roots
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + b"!")
        roots.add(root(folder))
    roots.add(root(folder, tmp_path / "copy"))
    assert len(roots) == 9


@pytest.mark.parametrize("keeps_times", [False, True])
def test_weights_that_differ_in_any_byte_have_other_roots(
    tmp_path: Path, keeps_times: bool
) -> None:
    """Two fine-tunes of one model, one put in the other's place: as long, and the same here and there."""
    weights, digests = tmp_path / "model" / "model.safetensors", set[str]()
    weights.parent.mkdir()
    weights.write_bytes(bytes(40 << 20))
    times = weights.stat()
    for at in range(0, 40 << 20, (8 << 20) + 12_345):
        digests.add(digest_of([weights.parent], tmp_path, settled_ns=0))
        with weights.open("r+b") as file:
            file.seek(at)
            file.write(b"other")
        if keeps_times:
            os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    digests.add(digest_of([weights.parent], tmp_path, settled_ns=0))
    assert len(digests) == 6


def test_large_files_are_read_once(tmp_path: Path) -> None:
    folder, kept = tmp_path / "model", tmp_path / "kept" / "digests.json"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    first = digest_of([folder], kept.parent)
    assert not kept.exists(), "it may change again within the tick of its times"
    assert digest_of([folder], kept.parent, settled_ns=0) == first
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    found = json.loads(kept.read_text())
    [known] = found.values()
    known["digest"] = "00" * 16
    kept.write_text(json.dumps(found))
    assert digest_of([folder], kept.parent) != first, "what is known is taken"
    kept.write_text("{")
    assert digest_of([folder], kept.parent) == first


def test_what_waits_is_written_however_much_it_is(lively_model: Any, folder: Path) -> None:
    """It is in memory anyway, so it may wait for the disk."""
    limits, model = DiskLimits(LOTS, LOTS, max_held_bytes=0), WatchedModel(lively_model)
    _, disk, _ = answered(model, folder, PROMPT, limits=limits)
    assert (disk.counts.written, disk.counts.skipped) == (3, 0)
    assert answered(model, folder, PROMPT)[2] == [len(PROMPT) - 1]


def test_what_memory_has_no_room_for_waits_within_bounds(lively_model: Any, folder: Path) -> None:
    limits, model = DiskLimits(LOTS, LOTS, max_held_bytes=0), WatchedModel(lively_model)
    driver, disk, cached = answered(model, folder, PROMPT, PROMPT, limits=limits, memory=1)
    assert disk.counts.skipped == 6
    assert cached == [0, 0]
    assert driver.tokens[1] == driver.tokens[2] == answer_alone(model, PROMPT)
    assert files_in(folder) == []
    files = driver.engine.vitals().prefix_files
    assert files is not None
    assert files.nbytes == 0


class Stuck:
    """A file at which whoever writes it waits until the test says so: a pipe that nobody reads."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        self._path = path
        # An engine that writes it itself would wait for ever.
        self._too_late = threading.Timer(20, self._read)
        self._too_late.start()

    def let_go(self) -> None:
        self._too_late.cancel()
        self._read()

    def _read(self) -> None:
        self._path.read_bytes()


def test_others_go_on_while_files_are_written(any_batched: WatchedModel, folder: Path) -> None:
    disk = PrefixDisk(folder.parent, folder.name, "root", LIMITS)
    driver = Driver(any_batched, prefix_cache_bytes=LOTS, prefix_disk=disk)
    name = Label("block", "root", "", tuple(PROMPT[:256])).key
    stuck = Stuck(folder / f"{name}.tmp")
    running = driver.submit([5, 6, 7], 200)
    driver.step_until(running, 5)
    stored = driver.submit(PROMPT)
    while stored not in driver.ended:
        driver.step()
    before = len(driver.tokens[running])
    for _ in range(40):
        driver.step()
    assert len(driver.tokens[running]) == before + 40
    assert disk.counts.failed == 0, "the writer still waits"
    written = disk.counts.written
    again = driver.submit(PROMPT)
    driver.finish()
    assert driver.tokens[running] == answer_alone(any_batched, [5, 6, 7], max_tokens=200)
    assert driver.tokens[again] == driver.tokens[stored] == answer_alone(any_batched, PROMPT)
    assert driver.ended[again].stamps.cached_tokens == len(PROMPT) - 1
    stuck.let_go()
    disk.close(10)
    # A pipe can't be synced, and so is no file in the end; those that waited behind it are.
    assert disk.counts.failed == 1
    assert disk.counts.written > written
    # Some snapshots are gone again: later ones took their place.
    assert len(files_in(folder)) == disk.counts.written or kinds_of(any_batched).needs_states
    assert not (folder / f"{name}.safetensors").exists()


class Slow:
    """A file that is read only when the test says so: a pipe takes its place."""

    def __init__(self, path: Path) -> None:
        self._path, self._data = path, path.read_bytes()
        path.unlink()
        os.mkfifo(path)

    def let_go(self) -> None:
        with self._path.open("wb") as pipe:
            pipe.write(self._data)


def test_others_go_on_while_files_are_read(any_batched: WatchedModel, folder: Path) -> None:
    answered(any_batched, folder, PROMPT)
    disk = PrefixDisk(folder.parent, folder.name, "root", LIMITS)
    driver = Driver(any_batched, prefix_cache_bytes=LOTS, prefix_disk=disk)
    slow = Slow(folder / f"{Label('block', 'root', '', tuple(PROMPT[:256])).key}.safetensors")
    before = len(files_in(folder))
    running = driver.submit([5, 6, 7], 200)
    driver.step_until(running, 5)
    first, second = driver.submit(PROMPT), driver.submit([*PROMPT, 9])
    for _ in range(40):
        driver.step()
    assert len(driver.tokens[running]) > 40
    assert not driver.tokens[first]
    assert driver.engine.is_restoring
    cancelled = driver.submit([*PROMPT, 10])
    driver.step()
    driver.cancel(cancelled)
    slow.let_go()
    driver.finish()
    assert driver.ended[cancelled].reason == "cancelled"
    assert driver.tokens[running] == answer_alone(any_batched, [5, 6, 7], max_tokens=200)
    assert driver.tokens[first] == answer_alone(any_batched, PROMPT)
    assert driver.tokens[second] == answer_alone(any_batched, [*PROMPT, 9])
    assert driver.ended[first].stamps.cached_tokens == len(PROMPT) - 1
    assert driver.waited == []
    for waited in (first, second, cancelled):
        stamps = driver.ended[waited].stamps
        until_ns = stamps.first_token_ns or time.monotonic_ns()
        assert stamps.admitted_ns is not None
        assert 0 < stamps.restoring_ns < until_ns - stamps.admitted_ns
    assert driver.ended[running].stamps.restoring_ns == 0
    # Each file was read once, whoever wanted it.
    assert 3 <= disk.counts.read <= before
    assert not driver.engine.is_restoring
    disk.close(10)


def test_files_are_written_from_arrays_that_others_have(lively_model: Any, folder: Path) -> None:
    """Nothing is copied to wait."""
    disk = PrefixDisk(folder.parent, folder.name, "root", LIMITS)
    array = mx.random.normal((1, 2, 256, 16))
    label = Label("block", "root", "", tuple(range(256)))
    assert disk.write(label, [(array,)])
    disk.hand_over()
    [state] = disk.read(label) or []
    disk.close(10)
    path = folder / f"{label.key}.safetensors"
    [(again,)] = PrefixDisk(folder.parent, folder.name, "root", LIMITS).read(label) or []
    assert again is not None
    assert mx.array_equal(again, array).item()
    assert path.stat().st_size == len(encode(label, [(array,)]))
    assert state[0] is array
