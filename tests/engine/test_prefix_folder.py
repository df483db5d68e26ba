"""The folder that the prefixes of all models share: one limit for what is in it, and one for what a day writes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_manager.mlx_server.engine.block_file import Label, decode, read_label
from mlx_manager.mlx_server.engine.prefix_disk import DiskLimits, PrefixDisk
from mlx_manager.mlx_server.engine.prefix_folder import WRITTEN, PrefixFolder

DAY = date(2026, 11, 26)
LOTS = 1 << 30
TOKENS = 256


class Calendar:
    """A day that a test turns."""

    def __init__(self) -> None:
        self.day = DAY

    def __call__(self) -> date:
        return self.day


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def shared(tmp_path: Path, calendar: Calendar) -> PrefixFolder:
    return PrefixFolder(tmp_path / "all", "own", calendar)


def test_a_day_s_bytes_are_counted_for_all_models(
    shared: PrefixFolder, tmp_path: Path, calendar: Calendar
) -> None:
    other = PrefixFolder(tmp_path / "all", "other", calendar)
    assert shared.book(60, 100) == 60
    assert other.book(60, 100) is None
    assert other.book(40, 100) == 100
    assert shared.written_today() == 100
    calendar.day += timedelta(days=1)
    assert shared.written_today() == 0
    assert shared.book(60, 100) == 60


def test_the_count_is_the_owner_s_and_never_half_written(
    shared: PrefixFolder, tmp_path: Path
) -> None:
    shared.book(60, 100)
    path = tmp_path / "all" / WRITTEN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = path.stat().st_ino
    shared.book(10, 100)
    assert path.stat().st_ino != before, "another file took its place"
    assert path.read_text() == "2026-11-26 70"


# Files that take long enough to be written for somebody to be killed in the middle of one.
FLOATS = 4_000_000


def write_until_killed(folder: Path, floats: int, files: int, is_time: Callable[[], bool]) -> None:
    """Have another process write files of so many floats, and kill it when it's time."""
    script = f"""
import mlx.core as mx
from pathlib import Path
from mlx_manager.mlx_server.engine.block_file import Label
from mlx_manager.mlx_server.engine.prefix_disk import DiskLimits, PrefixDisk
disk = PrefixDisk(Path({str(folder)!r}), "own", "root", DiskLimits({LOTS}, {LOTS}))
array = mx.zeros({floats})
for number in range({files}):
    disk.write(Label("block", "root", "", (number,)), [(array,)])
    disk.hand_over()
disk.close(60)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as writing:
        while writing.poll() is None and not is_time():
            time.sleep(0.0005)
        writing.kill()
    assert writing.returncode == -signal.SIGKILL, "it was killed too late"


def whole_bytes(folder: Path, floats: int) -> int:
    """Return the bytes of all files, each of which holds what its name and its label say."""
    files = list(folder.glob("*.safetensors"))
    assert files
    for path in files:
        label = read_label(path)
        assert path.name == f"{label.key}.safetensors"
        [(array,)] = decode(label, path.read_bytes()).arrays()
        assert array is not None
        assert array.shape == (floats,)
    return sum(path.stat().st_size for path in files)


def test_who_is_killed_has_not_written_for_nothing(tmp_path: Path) -> None:
    """Whatever a process has in a file, the count has, too."""
    own = tmp_path / "own"
    write_until_killed(tmp_path, 1000, 2000, lambda: len(list(own.glob("*.safetensors"))) > 20)
    written = whole_bytes(own, 1000)
    assert written <= PrefixFolder(tmp_path, "own").written_today() <= written + 8000


def test_who_is_killed_in_the_middle_of_a_file_leaves_whole_ones(tmp_path: Path) -> None:
    own = tmp_path / "own"

    def is_in_the_middle() -> bool:
        sizes = list[int]()
        for path in own.glob("*"):
            with suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return len(sizes) > 1 and any(0 < size < 4 * FLOATS for size in sizes)

    write_until_killed(tmp_path, FLOATS, 40, is_in_the_middle)
    whole_bytes(own, FLOATS)
    # What was being written is half there, under a name that nobody reads, and goes with the next start.
    [half] = own.glob("*.tmp")
    assert half.stat().st_size < 4 * FLOATS
    disk = PrefixDisk(tmp_path, "own", "root", DiskLimits(LOTS, LOTS))
    stored = list(disk.scan())
    disk.close(1)
    assert len(stored) == len(list(own.iterdir()))
    assert not half.exists()


@pytest.mark.parametrize("back", [timedelta(hours=5), timedelta(days=1)])
def test_a_clock_that_is_set_back_allows_nothing_twice(
    shared: PrefixFolder, calendar: Calendar, back: timedelta
) -> None:
    assert shared.book(100, 100)
    calendar.day -= back
    assert shared.book(1, 100) is None
    calendar.day += back
    assert shared.book(1, 100) is None


def test_a_clock_that_was_ahead_does_not_stop_the_writing_for_years(
    shared: PrefixFolder, calendar: Calendar
) -> None:
    calendar.day += timedelta(days=1500)
    assert shared.book(100, 100)
    calendar.day = DAY
    assert shared.book(1, 100) is None
    calendar.day += timedelta(days=1)
    assert shared.book(100, 100) == 100


@pytest.mark.parametrize("text", ["", "2026-11-26", "2026-11-26 many", "\0\0"])
def test_a_damaged_count_begins_anew(shared: PrefixFolder, tmp_path: Path, text: str) -> None:
    shared.book(100, 100)
    (tmp_path / "all" / WRITTEN).write_text(text)
    assert shared.book(60, 100) == 60


def write(disk: PrefixDisk, count: int, first: int = 0) -> list[Label]:
    """Have files of 64 KiB and a header written, one after the other."""
    labels = [
        Label("block", "root", "", (number,) * TOKENS) for number in range(first, first + count)
    ]
    for label in labels:
        disk.write(label, [(mx.zeros(1 << 14),)])
    disk.hand_over()
    return labels


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*/*.safetensors")}


def test_what_another_model_used_longest_ago_goes_first(tmp_path: Path) -> None:
    old = PrefixDisk(tmp_path, "old", "root", DiskLimits(LOTS, LOTS))
    gone = write(old, 4)
    old.close(10)
    (tmp_path / "old" / "notes.txt").write_text("somebody's")
    hour_ago = time.time() - 3600
    for place, label in enumerate(gone):
        os.utime(tmp_path / "old" / f"{label.key}.safetensors", (hour_ago, hour_ago + place))
    one = next((tmp_path / "old").glob("*.safetensors")).stat().st_size
    new = PrefixDisk(tmp_path, "new", "root", DiskLimits(5 * one, LOTS))
    new.own_bytes = 3 * one
    written = write(new, 3)
    new.close(10)
    kept = {f"{label.key}.safetensors" for label in [*gone[2:], *written]}
    assert files_in(tmp_path) == kept
    assert new.excess_bytes == 0
    assert (tmp_path / "old" / "notes.txt").exists()


def test_the_folder_of_a_model_that_has_nothing_left_is_removed(tmp_path: Path) -> None:
    old = PrefixDisk(tmp_path, "old", "root", DiskLimits(LOTS, LOTS))
    write(old, 2)
    old.close(10)
    new = PrefixDisk(tmp_path, "new", "root", DiskLimits(1 << 16, LOTS))
    new.own_bytes = 1 << 16
    write(new, 1, first=7)
    new.close(10)
    assert not (tmp_path / "old").exists()
    assert len(files_in(tmp_path)) == 1


def test_what_others_use_now_leaves_less_for_a_model(tmp_path: Path) -> None:
    mine = PrefixDisk(tmp_path, "mine", "root", DiskLimits(LOTS, LOTS))
    [oldest] = write(mine, 1)
    mine.close(10)
    hour_ago = time.time() - 3600
    path = tmp_path / "mine" / f"{oldest.key}.safetensors"
    os.utime(path, (hour_ago, hour_ago))
    busy = PrefixDisk(tmp_path, "busy", "root", DiskLimits(LOTS, LOTS))
    write(busy, 3)
    busy.close(10)
    one = path.stat().st_size
    again = PrefixDisk(tmp_path, "mine", "root", DiskLimits(4 * one, LOTS))
    again.own_bytes, again.oldest = 2 * one, oldest
    write(again, 1, first=5)
    again.close(10)
    assert len(list((tmp_path / "busy").glob("*.safetensors"))) == 3
    assert again.excess_bytes > 0.9 * one
