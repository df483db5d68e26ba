"""Opening a database: what it makes, how it is set up, and what it says when it can't."""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Dialect, text
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import DBAPIError

from mlx_manager.database import (
    DatabaseUnavailable,
    UtcDateTime,
    explain,
    open_database,
    upgrade,
)


def url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


async def refusal(path: Path) -> str:
    """Say why the database at `path` can't be opened."""
    with pytest.raises(DatabaseUnavailable) as raised:
        await open_database(url(path), busy_timeout_s=0.1)
    return raised.value.message


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_new_database_and_its_folder_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    database = await open_database(url(folder / "a.db"))
    await upgrade(database)
    modes = {path.name: mode(path) for path in folder.iterdir()}
    await database.close()
    assert mode(folder) == 0o700
    assert modes == {"a.db": 0o600, "a.db-wal": 0o600, "a.db-shm": 0o600}


async def test_a_folder_that_exists_keeps_its_permissions(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    await (await open_database(url(tmp_path / "a.db"))).close()
    assert mode(tmp_path) == 0o755


@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 1), ("busy_timeout", 1500), ("foreign_keys", 1)],
)
async def test_every_connection_is_set_up(tmp_path: Path, pragma: str, value: object) -> None:
    database = await open_database(url(tmp_path / "a.db"), busy_timeout_s=1.5)
    async with database.engine.connect() as first, database.engine.connect() as second:
        values = [
            (await connection.execute(text(f"PRAGMA {pragma}"))).scalar()
            for connection in (first, second)
        ]
    await database.close()
    assert values == [value, value]


async def test_a_sqlite_url_needs_no_driver_name(tmp_path: Path) -> None:
    database = await open_database(f"sqlite:///{tmp_path / 'a.db'}")
    await database.close()
    assert database.engine.url.drivername == "sqlite+aiosqlite"


async def test_a_database_in_memory_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = await open_database("sqlite+aiosqlite:///:memory:")
    await upgrade(database)
    await database.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_path_below_a_file_is_refused_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert await refusal(file / "a.db") == (
        f"The database {file / 'a.db'} can't be used: Not a directory. "
        "Repair it, or name another one."
    )


async def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    assert "Is a directory" in await refusal(tmp_path)


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Not a database, but somebody's notes.\n" * 100)
    message = await refusal(file)
    assert f"{file} is not a SQLite database. Move that file away" in message
    assert file.read_text().startswith("Not a database")


async def test_a_locked_database_is_refused_when_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    message = await refusal(path)
    other.close()
    assert f"{path} is locked by another process." in message


async def test_a_locked_database_is_refused_when_upgraded(tmp_path: Path) -> None:
    database = await open_database(url(tmp_path / "a.db"), busy_timeout_s=0.1)
    other = sqlite3.connect(tmp_path / "a.db")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable, match="is locked by another process"):
        await upgrade(database)
    other.close()
    await database.close()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("no url at all", "can't be understood"),
        ("oracel://somewhere/name", "no driver"),
        ("sqlite+pysqlite:///a.db", "no driver"),
    ],
)
async def test_a_url_that_can_not_work_is_refused(address: str, said: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=said):
        await open_database(address)


async def test_a_refusal_never_shows_the_password() -> None:
    with pytest.raises(DatabaseUnavailable) as raised:
        await open_database("oracel://me:s3cret@somewhere/name")
    assert "s3cret" not in raised.value.message
    assert "somewhere" in raised.value.message


async def test_an_error_carries_no_values(tmp_path: Path) -> None:
    database = await open_database(url(tmp_path / "a.db"))
    with pytest.raises(DBAPIError) as raised:
        async with database.engine.connect() as connection:
            await connection.execute(text("INSERT INTO nowhere VALUES (:v)"), {"v": "marked"})
    await database.close()
    assert "marked" not in str(raised.value)
    assert explain(raised.value) == "SQLITE_ERROR"


def stored(moment: datetime | None) -> datetime | None:
    """Send `moment` into SQLite's form and back."""
    dialect: Dialect = SQLiteDialect_pysqlite()
    column = UtcDateTime()
    bound = column.process_bind_param(moment, dialect)
    return column.process_result_value(bound and bound.replace(tzinfo=None), dialect)


@pytest.fixture
def _in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set this process's local time apart from UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_in_tokyo")
def test_a_moment_comes_back_in_utc() -> None:
    moment = datetime(2026, 3, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
    back = stored(moment)
    assert back == moment
    assert back is not None
    assert back.tzinfo is UTC


def test_no_moment_stays_none() -> None:
    assert stored(None) is None


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        stored(datetime(2026, 3, 1))  # noqa: DTZ001 - the mistake that is refused
