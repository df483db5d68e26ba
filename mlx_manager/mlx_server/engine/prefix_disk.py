"""The prefix cache's files, so that a conversation goes on warm after a restart. A trouble here is never a request's.

One file for each block and snapshot, written by a thread of its own (to a temporary name, synced, renamed) from the
arrays themselves, and read by another, so that rows go on meanwhile. What says which model, adapter, tokenizer,
template, number format and layout the files are of is the *root*; files of another root are of no use and go. Only the
owner can read them: they are what people wrote.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary, ref

import mlx.core as mx
import msgspec

from mlx_manager.mlx_server.engine.block_file import (
    BlockFileCorrupt,
    Contents,
    Label,
    decode,
    file_bytes,
    parts,
    payload_bytes,
    read_label,
)
from mlx_manager.mlx_server.engine.messages import PrefixFiles
from mlx_manager.mlx_server.engine.prefix_folder import (
    LOOK_S,
    OURS,
    SUFFIX,
    PrefixFolder,
    replace_file,
    say,
    unlink,
)
from mlx_manager.mlx_server.engine.row_state import State

# Of what was read from files, so many bytes become arrays in a step: rows that decode wait for no more.
MOST_TAKEN_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """Bytes that the files of all models may take, and that may be written in a day.

    `max_held_bytes` may wait to be written when memory has no room for them any more; beyond them they are given up.
    """

    max_bytes: int
    max_daily_bytes: int
    max_held_bytes: int = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that was there at the start."""

    label: Label
    nbytes: int
    used_s: float


@dataclass(slots=True, eq=False)
class Waiting:
    """Something that is to be written, once its arrays are computed; `is_held` when nobody else has them any more."""

    label: Label
    arrays: list[State]
    nbytes: int
    is_held: bool = False


@dataclass(eq=False)
class Fetch:
    """A file that is to be in memory soon; when it can't be read there is nothing in it. Gone when nobody has it."""

    label: Label
    is_read: bool = False
    contents: Contents | None = None
    arrays: list[State] | None = None

    @property
    def is_taken(self) -> bool:
        """Whether it was read and what came of it can be had at once."""
        return self.is_read and self.contents is None


class PrefixDisk:
    """The files of one model, in its folder in `folder`. What isn't said belongs to the engine's thread.

    `wake` is called, from another thread, when a file was read.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        root: str,
        limits: DiskLimits,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.root = root
        self.max_bytes = limits.max_bytes
        self.counts = PrefixFiles()
        # Of this model's files, as the cache knows them, and the one of them that was used longest ago.
        self.own_bytes = 0
        self.oldest: Label | None = None
        # So much more there is than may be, and others have nothing that is older.
        self.excess_bytes = 0
        self._shared = PrefixFolder(folder, model)
        self._folder = folder / model
        self._max_daily_bytes = limits.max_daily_bytes
        self._max_held_bytes = limits.max_held_bytes
        self._wake = wake
        self._lock = threading.Lock()
        self._written_today, self._looked_s = self._shared.written_today(), time.monotonic()
        self._waiting: dict[str, Waiting] = {}
        self._waiting_bytes = 0
        self._held_bytes = 0
        # What the engine computes at the moment: the threads beside it get only what is there.
        self._computing: list[Waiting] = []
        self._to_write: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._fetches = WeakValueDictionary[str, Fetch]()
        self._to_read: queue.SimpleQueue[ref[Fetch] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_all, name="prefix-writer", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read_all, name="prefix-reader", daemon=True).start()

    def scan(self) -> Iterator[Stored]:
        """Yield the files that are of use, and remove all others of ours."""
        try:
            paths = sorted(self._folder.iterdir())
        except OSError:
            return
        for path in paths:
            if OURS.fullmatch(path.name) and (stored := self._looked_at(path)):
                yield stored

    def write(self, label: Label, arrays: list[State]) -> int | None:
        """Have something written and return how many bytes; None when it is over the limit of a day.

        Nothing is copied: the arrays are used until they are written.
        """
        self._look_again()
        with self._lock:
            has_room = self._has_room(payload_bytes(arrays))
            nbytes = file_bytes(label, arrays) if has_room else 0
            if not has_room or not self._has_room(nbytes):
                self._count(skipped=1)
                return None
            waiting = self._waiting[label.key] = Waiting(label, arrays, nbytes)
            self._waiting_bytes += nbytes
        self._computing.append(waiting)
        return nbytes

    def hand_over(self) -> None:
        """Give the writer what is computed by now: to be called a step after `write`, when that's no wait."""
        computed, self._computing = self._computing, []
        mx.eval([one.arrays for one in computed])
        for one in computed:
            self._to_write.put(one.label.key)

    def keep(self, label: Label) -> bool:
        """Whether something is in its file, or may wait for that though memory has no room for it any more."""
        with self._lock:
            waiting = self._waiting.get(label.key)
            if waiting is None or waiting.is_held:
                return True
            if self._held_bytes + waiting.nbytes > self._max_held_bytes:
                self._count(skipped=1)
                return False
            waiting.is_held = True
            self._held_bytes += waiting.nbytes
            return True

    def fetch(self, label: Label) -> Fetch:
        """Have a file read, if nobody has yet who still wants it; `take` what has come before you `read` it."""
        fetch = self._fetches.get(label.key)
        if fetch is None:
            fetch = self._fetches[label.key] = Fetch(label)
            with self._lock:
                waiting = self._waiting.get(label.key)
            if waiting is None:
                self._to_read.put(ref(fetch))
            else:
                fetch.arrays, fetch.is_read = waiting.arrays, True
        return fetch

    def take(self, fetches: Sequence[Fetch]) -> bool:
        """Make arrays of what was read, as many as a step may; whether nothing is still to come."""
        taken_bytes = 0
        for fetch in fetches:
            if not fetch.is_read or taken_bytes >= MOST_TAKEN_BYTES:
                return False
            contents, fetch.contents = fetch.contents, None
            if contents is not None:
                fetch.arrays = contents.arrays()
                taken_bytes += contents.nbytes
        return True

    def read(self, label: Label) -> list[State] | None:
        """Return what was written; None, and the file is gone, when it isn't there or isn't what was written."""
        with self._lock:
            if (waiting := self._waiting.get(label.key)) is not None:
                self._count(read=1)
                return waiting.arrays
        fetch = self._fetches.get(label.key)
        if fetch is not None and fetch.is_taken:
            return fetch.arrays
        contents = self._contents(label)
        return None if contents is None else contents.arrays()

    def remove(self, label: Label) -> None:
        """Remove a file, if it is there, or leave it unwritten."""
        with self._lock:
            self._forget(label.key)
        unlink(self._path(label))

    def close(self, timeout_s: float) -> None:
        """Write what waits to be written, as long as there is time."""
        self.hand_over()
        self._to_write.put(None)
        self._to_read.put(None)
        self._writer.join(timeout_s)

    def _path(self, label: Label) -> Path:
        return self._folder / f"{label.key}{SUFFIX}"

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
        say(f"{path.name} is skipped and removed: {error}")
        with self._lock:
            self._count(corrupt=1)
        unlink(path)

    def _count(self, **more: int) -> None:
        """Count, with the lock held."""
        counts = {name: getattr(self.counts, name) + count for name, count in more.items()}
        self.counts = msgspec.structs.replace(self.counts, **counts)

    def _look_again(self) -> None:
        """See from time to time what others have written, and whether a new day has begun."""
        now_s = time.monotonic()
        if now_s - self._looked_s > LOOK_S:
            self._written_today, self._looked_s = self._shared.written_today(), now_s

    def _has_room(self, nbytes: int) -> bool:
        """Whether so many bytes more may be written today, by what is known here."""
        return self._written_today + self._waiting_bytes + nbytes <= self._max_daily_bytes

    def _forget(self, key: str) -> None:
        """Have nothing wait by this name, with the lock held."""
        if (waiting := self._waiting.pop(key, None)) is not None:
            self._waiting_bytes -= waiting.nbytes
            self._held_bytes -= waiting.nbytes if waiting.is_held else 0

    def _read_all(self) -> None:
        """Read what is wanted, in the reader's thread."""
        while (wanted := self._to_read.get()) is not None:
            # What nobody wants any more is gone.
            if (fetch := wanted()) is not None:
                try:
                    fetch.contents = self._contents(fetch.label)
                except Exception as error:  # noqa: BLE001 - who waits for it reads the prompt itself
                    self._give_up(self._path(fetch.label), error)
                fetch.is_read = True
                del fetch
                self._wake()

    def _contents(self, label: Label) -> Contents | None:
        """Return what is in a file; None, and the file is gone, when it isn't what was written. In any thread."""
        path = self._path(label)
        try:
            contents = decode(label, path.read_bytes())
            os.utime(path)
        except FileNotFoundError:
            # It could not be written, or another model's process has made room.
            return None
        except (OSError, BlockFileCorrupt) as error:
            self._give_up(path, error)
            return None
        with self._lock:
            self._count(read=1)
        return contents

    def _write_all(self) -> None:
        """Write what waits, in the writer's thread."""
        while (key := self._to_write.get()) is not None:
            with self._lock:
                waiting = self._waiting.get(key)
            if waiting is not None:
                self._write_one(waiting)

    def _write_one(self, waiting: Waiting) -> None:
        label, outcome = waiting.label, "written"
        try:
            if not self._is_allowed(waiting.nbytes):
                outcome = "skipped"
            else:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                replace_file(self._path(label), *parts(label, waiting.arrays))
        except Exception as error:  # noqa: BLE001 - counted; what waits behind it is written
            if not self.counts.failed:
                say(f"a file could not be written: {error}")
            outcome = "failed"
        with self._lock:
            is_wanted = self._waiting.get(label.key) is waiting
            if is_wanted:
                self._forget(label.key)
            self._count(**{outcome: 1})
        if not is_wanted:
            unlink(self._path(label))

    def _is_allowed(self, nbytes: int) -> bool:
        """Make room for a file, and count its bytes to this day's, if they are not too many."""
        written_today = self._shared.book(nbytes, self._max_daily_bytes)
        if written_today is None:
            self._written_today = self._shared.written_today()
            return False
        self._written_today = written_today
        self.excess_bytes = self._shared.make_room(self.own_bytes, self._oldest_s(), self.max_bytes)
        return True

    def _oldest_s(self) -> float:
        """Return when the file of this model was used that was so longest ago."""
        oldest = self.oldest
        try:
            return float("inf") if oldest is None else self._path(oldest).stat().st_mtime
        except OSError:
            return float("inf")
