"""Keep the store's file within its days and its bytes."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass

from mlx_manager.traces.samples import delete_samples
from mlx_manager.traces.schema import transaction

logger = logging.getLogger(__name__)

# So few at a time that a writer in another process, and the batch that waits in this one, get their turn.
_TRACES_AT_ONCE = 500
_CONTENTS_AT_ONCE = 50
_PAGES_AT_ONCE = 2_000
ANY_CONTENT = "SELECT 1 FROM contents WHERE stored_ns < ? LIMIT 1"
DELETE_CONTENTS = """
DELETE FROM contents WHERE rowid IN (SELECT rowid FROM contents WHERE stored_ns < ? ORDER BY stored_ns LIMIT ?)
"""
# Down to this share of the limit, or the next batch would be over it again.
_TARGET = 0.9


@dataclass(frozen=True, slots=True)
class Limits:
    """How long traces and what was said in them are kept, and how large the file may get."""

    max_age_ns: int
    max_content_age_ns: int
    max_bytes: int


class Retention:
    """Deletes what is too old or too much, the oldest first, and gives the space back.

    Age counts from when something was first stored: whoever sends spans chooses what time they claim.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        # Whether what was deleted may still be in the file or its log; another process may have ended over that.
        self._is_tainted = True

    def enforce(self, connection: sqlite3.Connection, now_ns: int) -> int:
        """Do it; return the traces deleted."""
        # Until the end says otherwise: any of it may raise when part is done.
        was_tainted, self._is_tainted = self._is_tainted, True
        # First: what they leave is room that no trace has to make.
        contents = _delete_contents(connection, now_ns - self._limits.max_content_age_ns)
        traces = _delete_traces(connection, now_ns, self._limits)
        self._is_tainted = was_tainted or traces + contents > 0
        # They name nothing but models, and their few pages are soon used again: nothing to overwrite or give back.
        _delete_samples(connection, now_ns - self._limits.max_age_ns)
        if self._is_tainted:
            _forget_origins(connection)
            _free(connection)
            self._is_tainted = not _write_back(connection)
        if traces:
            logger.info("trace store swept: %(traces)d old traces are gone", {"traces": traces})
        if contents:
            logger.info("content swept: what %(spans)d spans said is gone", {"spans": contents})
        return traces


def used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _delete_traces(connection: sqlite3.Connection, now_ns: int, limits: Limits) -> int:
    deleted = 0
    while expired := _expired(connection, now_ns - limits.max_age_ns):
        deleted += _delete(connection, expired)
    if used_bytes(connection) > limits.max_bytes:
        goal = int(limits.max_bytes * _TARGET)
        while (used := used_bytes(connection)) > goal:
            if not (oldest := _oldest(connection, share=1 - goal / used)):
                break
            deleted += _delete(connection, oldest)
        _delete_samples(connection, _first_stored_ns(connection))
    return deleted


def _delete_samples(connection: sqlite3.Connection, before_ns: int) -> None:
    with transaction(connection):
        delete_samples(connection, before_ns)


def _first_stored_ns(connection: sqlite3.Connection) -> int:
    """When the oldest trace that is left was stored; samples from before it would tell of nothing else."""
    row = connection.execute("SELECT stored_ns FROM traces ORDER BY id LIMIT 1").fetchone()
    return int(row[0]) if row else 0


def _delete_contents(connection: sqlite3.Connection, before_ns: int) -> int:
    deleted = 0
    # In most sweeps there are none: reading says so without waiting for the write lock.
    while connection.execute(ANY_CONTENT, [before_ns]).fetchone():
        with transaction(connection):
            values = [before_ns, _CONTENTS_AT_ONCE]
            deleted += connection.execute(DELETE_CONTENTS, values).rowcount
    return deleted


def _expired(connection: sqlite3.Connection, before_ns: int) -> list[int]:
    rows = connection.execute(
        "SELECT id, stored_ns FROM traces ORDER BY id LIMIT ?", [_TRACES_AT_ONCE]
    ).fetchall()
    return [trace for trace, stored_ns in rows if stored_ns < before_ns]


def _oldest(connection: sqlite3.Connection, share: float) -> list[int]:
    """About this share of all traces, one at least: traces differ in size."""
    first, last = connection.execute(
        "SELECT (SELECT min(id) FROM traces), (SELECT max(id) FROM traces)"
    ).fetchone()
    if first is None:
        return []
    count = min(max(1, int((last - first + 1) * share)), _TRACES_AT_ONCE)
    rows = connection.execute("SELECT id FROM traces ORDER BY id LIMIT ?", [count])
    return [trace for (trace,) in rows.fetchall()]


def _delete(connection: sqlite3.Connection, traces: list[int]) -> int:
    keys = [(trace,) for trace in traces]
    with transaction(connection):
        for table in ("spans", "contents", "requests"):
            connection.executemany(f"DELETE FROM {table} WHERE trace = ?", keys)
        connection.executemany("DELETE FROM traces WHERE id = ?", keys)
    return len(traces)


def _forget_origins(connection: sqlite3.Connection) -> None:
    with transaction(connection):
        connection.execute(
            "DELETE FROM origins WHERE last_trace < (SELECT ifnull(min(id), 0) FROM traces)"
        )


def _free(connection: sqlite3.Connection) -> None:
    free = _free_pages(connection)
    while free:
        # Each row that it returns is a page freed: a plain `execute` would free one.
        connection.execute(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})").fetchall()
        before, free = free, _free_pages(connection)
        if free >= before:
            break


def _write_back(connection: sqlite3.Connection) -> bool:
    """Empty the log into the file, which cuts it; False when a reader holds that up until the next time."""
    (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not is_busy


def _free_pages(connection: sqlite3.Connection) -> int:
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(free)
