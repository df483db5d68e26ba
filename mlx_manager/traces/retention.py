"""Keep the store's file within its days and its bytes."""

from __future__ import annotations

import logging
import sqlite3

from mlx_manager.traces.schema import transaction

logger = logging.getLogger(__name__)

# So few at a time that a writer in another process, and the batch that waits in this one, get their turn.
_TRACES_AT_ONCE = 500
_PAGES_AT_ONCE = 2_000
# Down to this share of the limit, or the next batch would be over it again.
_TARGET = 0.9


def enforce(connection: sqlite3.Connection, now_ns: int, max_age_ns: int, max_bytes: int) -> int:
    """Delete what is too old or too much, the oldest first, and give the space back; return the traces deleted.

    Age counts from when a trace was first stored: whoever sends spans chooses what time they claim.
    """
    deleted = 0
    while expired := _expired(connection, now_ns - max_age_ns):
        deleted += _delete(connection, expired)
    if used_bytes(connection) > max_bytes:
        goal = int(max_bytes * _TARGET)
        while (used := used_bytes(connection)) > goal:
            if not (oldest := _oldest(connection, share=1 - goal / used)):
                break
            deleted += _delete(connection, oldest)
    if deleted:
        _forget_origins(connection)
        _shrink(connection)
        logger.info("trace store swept: %(traces)d old traces are gone", {"traces": deleted})
    return deleted


def used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


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
        for table, column in (("spans", "trace"), ("requests", "trace"), ("traces", "id")):
            connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", keys)
    return len(traces)


def _forget_origins(connection: sqlite3.Connection) -> None:
    with transaction(connection):
        connection.execute(
            "DELETE FROM origins WHERE last_trace < (SELECT ifnull(min(id), 0) FROM traces)"
        )


def _shrink(connection: sqlite3.Connection) -> None:
    free = _free_pages(connection)
    while free:
        # Each row that it returns is a page freed: a plain `execute` would free one.
        connection.execute(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})").fetchall()
        before, free = free, _free_pages(connection)
        if free >= before:
            break
    # The file is cut when its changes are written back from the log; readers may hold that up until the next time.
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _free_pages(connection: sqlite3.Connection) -> int:
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(free)
