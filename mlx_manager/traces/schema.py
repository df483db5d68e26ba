"""The file of the trace store: its tables, and how it is opened, checked and, when it is broken, replaced."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from mlx_manager.database import explain, make_private_file
from mlx_manager.errors import TracesUnavailable

logger = logging.getLogger(__name__)

# "MLXT": tells our file from any other SQLite file that a setting may point to by mistake.
APPLICATION_ID = 0x4D4C5854
VERSION = 4
BUSY_TIMEOUT_S = 5.0
# Written back after about 4 MiB, and never left larger than 16 MiB on the disk.
_CHECKPOINT_PAGES = 1000
_WAL_BYTES = 16 * 2**20
# What each connection keeps of the file; the system caches it anyway.
_CACHE_KIB = 512
# Compiled ones. Those of a batch are as long as it has rows, and take up to 200 KiB each: 128, which is Python's own
# number, were some 17 MiB of a busy server.
_KEPT_STATEMENTS = 16

# `traces.id` counts up, and a span's key begins with it: new spans are appended in the file instead of spread over it,
# and the oldest, which go first, lie side by side. `requests` holds what the figures read, in the order of time.
# `contents` holds what was said, apart from the spans that it belongs to, since it goes before them. `samples` says how
# busy and how full models were, a row a model every few seconds.
SAMPLES = """
CREATE TABLE samples (
    at_ns INTEGER NOT NULL,
    process INTEGER NOT NULL,
    model TEXT NOT NULL,
    waiting_mean REAL NOT NULL,
    waiting_peak INTEGER NOT NULL,
    running_mean REAL NOT NULL,
    running_peak INTEGER NOT NULL,
    weights_bytes INTEGER NOT NULL,
    kv_bytes INTEGER NOT NULL,
    prefix_cache_bytes INTEGER NOT NULL,
    buffers_bytes INTEGER NOT NULL,
    PRIMARY KEY (at_ns, process, model)
) WITHOUT ROWID;
"""
BY_NAME = """
CREATE INDEX traces_by_name ON traces (name);
"""
SCHEMA = f"""
CREATE TABLE traces (
    id INTEGER PRIMARY KEY,
    trace_id BLOB NOT NULL UNIQUE,
    stored_ns INTEGER NOT NULL,
    name TEXT NOT NULL,
    service TEXT NOT NULL,
    started_ns INTEGER NOT NULL,
    duration_ns INTEGER NOT NULL,
    status TEXT NOT NULL,
    span_count INTEGER NOT NULL,
    error_type TEXT,
    operation TEXT,
    model TEXT,
    provider TEXT,
    backend TEXT,
    endpoint TEXT,
    http_status INTEGER,
    request_id TEXT,
    session TEXT,
    key_id TEXT,
    input_tokens INTEGER,
    cached_tokens INTEGER,
    output_tokens INTEGER,
    queue_s REAL,
    time_to_first_token_s REAL,
    time_per_output_token_s REAL
);
CREATE INDEX traces_listed ON traces (
    started_ns, duration_ns, status, model, name, operation, endpoint, input_tokens, output_tokens
);
{BY_NAME}CREATE INDEX traces_by_model ON traces (model, started_ns) WHERE model IS NOT NULL;
CREATE INDEX traces_by_error ON traces (error_type, started_ns) WHERE error_type IS NOT NULL;
CREATE INDEX traces_by_session ON traces (session, started_ns) WHERE session IS NOT NULL;
CREATE INDEX traces_by_key ON traces (key_id, started_ns) WHERE key_id IS NOT NULL;
CREATE INDEX traces_by_request ON traces (request_id) WHERE request_id IS NOT NULL;
CREATE TABLE spans (
    trace INTEGER NOT NULL,
    span_id BLOB NOT NULL,
    parent_span_id BLOB,
    name TEXT NOT NULL,
    kind INTEGER NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    status INTEGER NOT NULL,
    origin INTEGER NOT NULL,
    details BLOB NOT NULL,
    PRIMARY KEY (trace, span_id)
) WITHOUT ROWID;
CREATE TABLE contents (
    trace INTEGER NOT NULL,
    span_id BLOB NOT NULL,
    stored_ns INTEGER NOT NULL,
    attributes BLOB NOT NULL,
    PRIMARY KEY (trace, span_id)
);
CREATE INDEX contents_by_time ON contents (stored_ns);
CREATE TABLE origins (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    service TEXT NOT NULL,
    scope TEXT NOT NULL,
    resource BLOB NOT NULL,
    last_trace INTEGER NOT NULL
);
CREATE TABLE requests (
    started_ns INTEGER NOT NULL,
    trace INTEGER NOT NULL,
    number INTEGER NOT NULL,
    duration_s REAL NOT NULL,
    status TEXT NOT NULL,
    model TEXT,
    input_tokens INTEGER,
    cached_tokens INTEGER,
    output_tokens INTEGER,
    time_to_first_token_s REAL,
    time_per_output_token_s REAL,
    PRIMARY KEY (started_ns, trace, number)
) WITHOUT ROWID;
CREATE INDEX requests_by_trace ON requests (trace);
{SAMPLES}"""
# By the version that a file has: what makes the next one of it. A file of any other older version begins anew.
ADDITIONS = {2: SAMPLES, 3: BY_NAME}


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open or create the file, for its owner alone; a broken one is moved aside, one of an older version replaced.

    Raises TracesUnavailable for what can't be opened, was written by a newer version or isn't ours.
    """
    with _trouble_explained(path):
        make_private_file(path)
        try:
            return _prepared(path)
        except sqlite3.DatabaseError as error:
            if not is_broken(error):
                raise
            move_aside(path)
            make_private_file(path)
            return _prepared(path)


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open an existing file for queries from any thread. Raises TracesUnavailable."""
    if not path.exists():
        raise TracesUnavailable(
            f"There are no traces at {path}. Start the server and send it a request, or set MLX_SERVER_TRACES_PATH."
        )
    with _trouble_explained(path), _closed_on_error(_connect(path)) as connection:
        version = _version(connection, path)
        if version != VERSION:
            raise _other_version(path, version)
        # Not `mode=ro`: such a connection can't set up the shared memory that reading beside a writer takes.
        connection.execute("PRAGMA query_only = ON")
        return connection


def is_broken(error: sqlite3.Error) -> bool:
    """Whether the file itself is damaged, and not just busy, full or out of reach."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def move_aside(path: Path) -> Path:
    """Rename a broken file, so that a new one can begin and the old one can still be looked at."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    aside = path.with_name(f"{path.name}.broken-{stamp}")
    for suffix in ("", "-wal", "-shm"):
        part = Path(f"{path}{suffix}")
        if part.exists():
            part.rename(f"{aside}{suffix}")
    logger.error(
        "trace store damaged: %(path)s was moved to %(aside)s and a new one begun",
        {"path": path, "aside": aside},
    )
    return aside


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One change, whole or not at all; takes the write lock at once, so that two writers wait in turn."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _prepared(path: Path) -> sqlite3.Connection:
    with _closed_on_error(_connect(path)) as connection:
        version = _version(connection, path)
        if version > VERSION:
            raise _other_version(path, version)
        if version == VERSION:
            return connection
        if version in ADDITIONS:
            return _with_additions(connection, path)
        if version:
            logger.warning(
                "trace store outdated: %(path)s is from an older version and begins anew",
                {"path": path},
            )
        return _created(connection, path)


def _created(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    # Both before the first table, and in this order: in WAL mode the vacuuming can't be chosen any more.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    _use_wal(connection)
    with transaction(connection):
        # Another process may have been faster.
        if _version(connection, path) != VERSION:
            _drop_all(connection)
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
    return connection


def _with_additions(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Bring a file up to this version with all that is in it."""
    with transaction(connection):
        # Another process may have been faster.
        for version in range(_version(connection, path), VERSION):
            for statement in ADDITIONS[version].split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    return connection


def _drop_all(connection: sqlite3.Connection) -> None:
    """Traces live for days: those of another version aren't worth a translation."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in tables:
        connection.execute(f'DROP TABLE "{table}"')


def _use_wal(connection: sqlite3.Connection) -> None:
    """Change the mode; unlike anything else this doesn't wait for another process that does the same."""
    end_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.01)
        else:
            return


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_KEPT_STATEMENTS,
    )
    # Not FAST, which leaves long texts readable in the pages they gave back. Sweeps write a quarter more, nothing else.
    connection.executescript(
        "PRAGMA secure_delete = ON;"
        f"PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES};"
        f"PRAGMA journal_size_limit = {_WAL_BYTES}; PRAGMA temp_store = MEMORY;"
        f"PRAGMA cache_size = -{_CACHE_KIB}"
    )
    return connection


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """The file's version; 0 for an empty one. Raises TracesUnavailable for a file of something else."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application == APPLICATION_ID:
        return int(version)
    if tables:
        raise TracesUnavailable(
            f"{path} is a database of something else. Set MLX_SERVER_TRACES_PATH to a file of its own."
        )
    return 0


def _other_version(path: Path, version: int) -> TracesUnavailable:
    if version > VERSION:
        return TracesUnavailable(
            f"The trace store {path} was written by a newer MLX Manager (version {version} of the file; this one "
            f"knows {VERSION}). Install that version again, or set MLX_SERVER_TRACES_PATH to another file."
        )
    return TracesUnavailable(
        f"The trace store {path} was written by an older MLX Manager. Start the server once: it begins a new one."
    )


@contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


@contextmanager
def _trouble_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise TracesUnavailable(
            f"The trace store {path} can't be used: {explain(error)}. Repair it, or set MLX_SERVER_TRACES_PATH."
        ) from error
