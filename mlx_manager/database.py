"""The database: SQLite by default, PostgreSQL by URL. Opened and upgraded when a process starts."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, DateTime, Dialect, MetaData, TypeDecorator, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import ConnectionPoolEntry

from mlx_manager.errors import MlxManagerError
from mlx_manager.migrations import UnknownRevision, upgrade_schema

# What a database in trouble raises: the driver's errors, sockets and files, a pool that ran dry.
DATABASE_TROUBLE = (DBAPIError, OSError, PoolTimeout)

_LOCKS_AT_BEGIN = "mlx_manager_locks_at_begin"


class DatabaseUnavailable(MlxManagerError):
    """The database can't be opened, read or written as things are."""

    code = "database_unavailable"
    status = 503
    title = "Database unavailable"


class Base(DeclarativeBase):
    """Every table. Constraints have names, so that a migration can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: aware going in, in UTC coming out, also from SQLite, which keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone is no moment")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Database:
    """An open database. `engine` is what gets instrumented; services are given a session."""

    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session whose work is kept when the block is left, and undone when it fails. Raises DatabaseUnavailable."""
        with _trouble_explained(self.engine.url):
            async with self.sessions.begin() as session:
                yield session

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


async def open_database(url: str, *, busy_timeout_s: float = 5.0) -> Database:
    """Open the database at `url`, an SQLAlchemy URL, and prove that it answers.

    A new SQLite file is for this user only, and so is the folder made for it. `busy_timeout_s` is
    how long SQLite waits for another process's lock. Raises DatabaseUnavailable.
    """
    address = _parse(url)
    engine = _create_engine(address, busy_timeout_s)
    with _trouble_explained(address):
        if (path := _sqlite_path(address)) is not None:
            make_private_file(path)
        async with engine.connect():
            pass
    return Database(engine, async_sessionmaker(engine, expire_on_commit=False))


async def upgrade(database: Database) -> None:
    """Bring the schema to this version's: all of it or, when interrupted, none.

    Of several processes that start at once, one does it and the others wait. Raises
    DatabaseUnavailable.
    """
    locking = database.engine.execution_options(**{_LOCKS_AT_BEGIN: True})
    with _trouble_explained(database.engine.url):
        async with locking.begin() as connection:
            await connection.run_sync(upgrade_schema)


def explain(error: BaseException) -> str:
    """Name the database's trouble, without the values of the statement that met it."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, OSError):
        return cause.strerror or type(cause).__name__
    return getattr(cause, "sqlite_errorname", type(cause).__name__)


def make_private_file(path: Path) -> None:
    """Create an SQLite file for its owner alone; SQLite gives those beside it the same mode."""
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _parse(url: str) -> URL:
    try:
        address = make_url(url)
    except ArgumentError:
        raise DatabaseUnavailable(
            "The database URL can't be understood. Write it like sqlite+aiosqlite:////folder/file "
            "or postgresql+asyncpg://user:password@host/name."
        ) from None
    if address.drivername == "sqlite":
        return address.set(drivername="sqlite+aiosqlite")
    return address


def _sqlite_path(address: URL) -> Path | None:
    name = address.database
    if address.get_backend_name() != "sqlite" or not name or name.startswith((":memory:", "file:")):
        return None
    return Path(name)


def _create_engine(address: URL, busy_timeout_s: float) -> AsyncEngine:
    try:
        # Hidden parameters: an error that gets logged must not carry the values of a row.
        engine = create_async_engine(address, hide_parameters=True)
    except (ArgumentError, InvalidRequestError, ModuleNotFoundError) as error:
        raise DatabaseUnavailable(
            f"There is no driver for the database URL {_name(address)}: {error}. "
            "Install one that works with asyncio, or use sqlite+aiosqlite."
        ) from error
    if engine.dialect.name == "sqlite":
        _set_up_sqlite(engine, round(busy_timeout_s * 1000))
    return engine


def _set_up_sqlite(engine: AsyncEngine, busy_timeout_ms: int) -> None:
    # The time limit comes first: the change to WAL may itself have to wait for a lock.
    pragmas = (
        f"busy_timeout = {busy_timeout_ms}",
        "journal_mode = WAL",
        "synchronous = NORMAL",
        "foreign_keys = ON",
        # What was deleted is overwritten: responses hold what was said.
        "secure_delete = ON",
        # KiB of pages that each connection keeps. The system caches the file anyway, and SQLite's own 2 MiB times a
        # pool of connections would fill with rows that are written once.
        "cache_size = -256",
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def lock_at_begin(connection: Connection) -> None:
        # Python's sqlite3 begins a transaction at the first row written: too late for a schema,
        # which must be read and changed under one lock.
        if connection.get_execution_options().get(_LOCKS_AT_BEGIN):
            connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _trouble_explained(address: URL) -> Iterator[None]:
    try:
        yield
    except UnknownRevision:
        raise DatabaseUnavailable(
            f"The database {_name(address)} was written by a newer MLX Manager. "
            "Install that version again, or name another database."
        ) from None
    except DATABASE_TROUBLE as error:
        trouble = explain(error)
        advice = _ADVICE.get(trouble, f"can't be used: {trouble}. Repair it, or name another one.")
        raise DatabaseUnavailable(f"The database {_name(address)} {advice}") from error


def _name(address: URL) -> str:
    """Name the database as its owner knows it, without its password."""
    return str(_sqlite_path(address) or address.render_as_string(hide_password=True))


_ADVICE = {
    "SQLITE_BUSY": "is locked by another process. End that process, or name another database.",
    "SQLITE_CANTOPEN": "can't be opened. Make its folder writable, or name another database.",
    "SQLITE_CORRUPT": "is damaged. Restore it from a copy, or move it away to start a new one.",
    "SQLITE_FULL": "has no room to grow. Free some disk space.",
    "SQLITE_NOTADB": "is not a SQLite database. Move that file away, or name another database.",
    "SQLITE_READONLY": "is read-only. Make it and its folder writable, or name another database.",
}
