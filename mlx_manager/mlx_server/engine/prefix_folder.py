"""The folder of all models' prefixes: what may be in it, and be written to it in a day, by all engine processes.

Each model has a folder in it, and the engine process of the model knows what is there. What belongs to others it sees
only to make room: files that were used longer ago than its own oldest, of models that nobody loads any more first of
all.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from operator import attrgetter
from pathlib import Path

SUFFIX = ".safetensors"
TEMPORARY = ".tmp"
WRITTEN = "written"
LOCK = "lock"
# Nothing else is ever removed, whatever somebody keeps in the folder.
OURS = re.compile(rf"[0-9a-f]{{32,}}({SUFFIX}|{TEMPORARY})")
# How long what others have is taken to be as it was.
LOOK_S = 10.0
# A clock is set back by no more; a day further ahead was a mistake of the clock.
LONGEST_SET_BACK = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A file of another model."""

    path: Path
    nbytes: int
    used_s: float


class PrefixFolder:
    """The files of all models in `folder`, seen by the engine process of the model named `own`. `today` is by UTC."""

    def __init__(
        self, folder: Path, own: str, today: Callable[[], date] = lambda: datetime.now(UTC).date()
    ) -> None:
        self.path = folder
        self._own = own
        self._today = today
        self._foreign = deque[Foreign]()
        self._looked_s = float("-inf")

    def written_today(self) -> int:
        """Return how many bytes were written since the day began. In any thread."""
        return self._booked()[1]

    def book(self, nbytes: int, most_bytes: int) -> int | None:
        """Count bytes that are to be written, and return how many it are today; None: they'd be more than may be.

        They are counted before they are written: who is killed in between has not written them for nothing. Raises
        OSError.
        """
        with self._locked():
            day, written = self._booked()
            is_allowed = written + nbytes <= most_bytes
            written += nbytes if is_allowed else 0
            if (day, written) != _read(self.path / WRITTEN):
                replace_file(self.path / WRITTEN, f"{day.isoformat()} {written}".encode())
        return written if is_allowed else None

    def make_room(self, own_bytes: int, oldest_s: float, most_bytes: int) -> int:
        """Remove what others have and have used before `oldest_s`, and return by how much it is still too much."""
        if time.monotonic() - self._looked_s > LOOK_S:
            self._look()
        over = own_bytes + sum(one.nbytes for one in self._foreign) - most_bytes
        while over > 0 and self._foreign and self._foreign[0].used_s < oldest_s:
            one = self._foreign.popleft()
            unlink(one.path)
            # It stays as long as anything is in it.
            with suppress(OSError):
                one.path.parent.rmdir()
            over -= one.nbytes
        return max(over, 0)

    def _booked(self) -> tuple[date, int]:
        """Return today and what was written of it; a clock that was set back begins no day again."""
        (day, written), today = _read(self.path / WRITTEN), self._today()
        if today > day:
            return today, 0
        return (today if day - today > LONGEST_SET_BACK else day), written

    def _look(self) -> None:
        self._looked_s = time.monotonic()
        self._foreign = deque(sorted(self._all_foreign(), key=attrgetter("used_s")))

    def _all_foreign(self) -> Iterator[Foreign]:
        with suppress(OSError):
            for folder in self.path.iterdir():
                if folder.name != self._own and folder.is_dir():
                    yield from _ours_in(folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Have the counter for this process alone."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path / LOCK, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def replace_file(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a file that only the owner can read, whole or not at all. Raises OSError."""
    temporary = path.with_name(path.name.removesuffix(SUFFIX) + TEMPORARY)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except OSError:
        unlink(temporary)
        raise


def unlink(path: Path) -> None:
    """Remove a file, if it is there; say so if it can't be."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        say(f"{path.name} could not be removed: {error}")


def say(text: str) -> None:
    """Have the API process log a line."""
    sys.stderr.write(f"prefix cache: {text}\n")


def _ours_in(folder: Path) -> Iterator[Foreign]:
    for entry in os.scandir(folder):
        if OURS.fullmatch(entry.name):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                yield Foreign(Path(entry.path), status.st_size, status.st_mtime)


def _read(path: Path) -> tuple[date, int]:
    """Return a day and how many bytes were written then, as the last process to write left it."""
    try:
        day, _, count = path.read_text().partition(" ")
        return date.fromisoformat(day), int(count)
    except (OSError, ValueError):
        return date.min, 0
