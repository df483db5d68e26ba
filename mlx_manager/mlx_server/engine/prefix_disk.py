"""The prefix cache's files, so that a conversation goes on warm after a restart. A trouble here is never a request's.

One file for each block and snapshot, written by a thread of its own: to a temporary name, synced, renamed. What says
which model, adapter, tokenizer, template, number format and layout the files are of is the *root*; files of another
root are of no use and go. Only the owner can read them: they are what people wrote.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mlx_manager.mlx_server.engine.block_file import (
    BlockFileCorrupt,
    Label,
    decode,
    encode,
    read_label,
)
from mlx_manager.mlx_server.engine.messages import PrefixFiles
from mlx_manager.mlx_server.engine.row_state import State

SUFFIX = ".safetensors"
TEMPORARY = ".tmp"
WRITTEN = "written"
# Bytes that wait to be written; what comes beyond them stays in memory only.
MOST_PENDING_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """Bytes that files may take, and that may be written in a day."""

    max_bytes: int
    max_daily_bytes: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that was there at the start."""

    label: Label
    nbytes: int
    used_s: float


class PrefixDisk:
    """The files of one model in `folder`. All but the writing belongs to the engine's thread."""

    def __init__(self, folder: Path, root: str, limits: DiskLimits) -> None:
        self.root = root
        self.max_bytes = limits.max_bytes
        self.counts = PrefixFiles()
        self._folder = folder
        self._max_daily_bytes = limits.max_daily_bytes
        self._lock = threading.Lock()
        self._pending: dict[str, bytes] = {}
        self._pending_bytes = 0
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._day, self._written_today = _written(folder)
        self._thread = threading.Thread(target=self._write_all, name="prefix-disk", daemon=True)
        self._thread.start()

    def scan(self) -> Iterator[Stored]:
        """Yield the files that are of use, and remove all others."""
        try:
            paths = sorted(self._folder.iterdir())
        except OSError:
            return
        for path in paths:
            if path.name != WRITTEN and (stored := self._looked_at(path)):
                yield stored

    def write(self, label: Label, arrays: list[State]) -> int | None:
        """Have something written and return how many bytes; None when it is over a limit."""
        data = encode(label, arrays)
        with self._lock:
            self._new_day()
            has_room = self._pending_bytes + len(data) <= MOST_PENDING_BYTES
            if not has_room or self._written_today + len(data) > self._max_daily_bytes:
                self._count(skipped=1)
                return None
            self._written_today += len(data)
            self._pending[label.key] = data
            self._pending_bytes += len(data)
        self._queue.put(label.key)
        return len(data)

    def read(self, label: Label) -> list[State] | None:
        """Return what was written; None, and the file is gone, when it isn't there or isn't what was written."""
        with self._lock:
            data = self._pending.get(label.key)
        path = self._path(label.key)
        try:
            if data is None:
                data = path.read_bytes()
                os.utime(path)
            arrays = decode(label, data)
        except FileNotFoundError:
            # It could not be written.
            return None
        except (OSError, BlockFileCorrupt) as error:
            self._give_up(path, error)
            return None
        with self._lock:
            self._count(read=1)
        return arrays

    def remove(self, key: str) -> None:
        """Remove a file, if it is there, or leave it unwritten."""
        with self._lock:
            self._pending_bytes -= len(self._pending.pop(key, b""))
        _unlink(self._path(key))

    def close(self, timeout_s: float) -> None:
        """Write what waits to be written, as long as there is time."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{SUFFIX}"

    def _looked_at(self, path: Path) -> Stored | None:
        try:
            label, status = read_label(path), path.stat()
            if label.root != self.root or path.name != f"{label.key}{SUFFIX}":
                raise BlockFileCorrupt("it is of another model")
        except (OSError, BlockFileCorrupt) as error:
            self._give_up(path, error)
            return None
        return Stored(label, status.st_size, status.st_mtime)

    def _give_up(self, path: Path, error: Exception) -> None:
        _say(f"{path.name} is skipped and removed: {error}")
        with self._lock:
            self._count(corrupt=1)
        _unlink(path)

    def _count(self, **more: int) -> None:
        """Count, with the lock held."""
        counts = {name: getattr(self.counts, name) + count for name, count in more.items()}
        self.counts = msgspec.structs.replace(self.counts, **counts)

    def _new_day(self) -> None:
        if (today := _today()) != self._day:
            self._day, self._written_today = today, 0

    def _write_all(self) -> None:
        while (key := self._queue.get()) is not None:
            with self._lock:
                data = self._pending.get(key)
            if data is not None:
                self._write_one(key, data)

    def _write_one(self, key: str, data: bytes) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._folder / f"{key}{TEMPORARY}"
            _write_synced(temporary, data)
            temporary.rename(self._path(key))
            (self._folder / WRITTEN).write_text(f"{self._day} {self._written_today}")
            outcome = "written"
        except OSError as error:
            _unlink(self._folder / f"{key}{TEMPORARY}")
            if not self.counts.failed:
                _say(f"a file could not be written: {error}")
            outcome = "failed"
        with self._lock:
            is_wanted = key in self._pending
            self._pending_bytes -= len(self._pending.pop(key, b""))
            self._count(**{outcome: 1})
        if not is_wanted:
            _unlink(self._path(key))


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _say(f"{path.name} could not be removed: {error}")


def _say(text: str) -> None:
    """Have the API process log a line."""
    sys.stderr.write(f"prefix cache: {text}\n")


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _written(folder: Path) -> tuple[str, int]:
    """Return the day of the last writing and how many bytes it was, as the last process left it."""
    try:
        day, _, count = (folder / WRITTEN).read_text().partition(" ")
        return day, int(count)
    except (OSError, ValueError):
        return "", 0
