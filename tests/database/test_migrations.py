"""The schema's upgrade: complete, atomic, silent, and safe when two processes start at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

import mlx_manager
import mlx_manager.mlx_server.audit.tables  # declares its table
import mlx_manager.mlx_server.responses.tables  # and so does this
import mlx_manager.mlx_server.time_limits.tables  # and so does this
from mlx_manager.database import Base, Database, DatabaseUnavailable, open_database, upgrade

PACKAGE = Path(mlx_manager.__file__).parent

UPGRADE = """
    import asyncio, logging, sys
    logging.basicConfig(level=logging.INFO)
    from mlx_manager.database import open_database, upgrade

    async def main():
        database = await open_database(sys.argv[1])
        await upgrade(database)
        await database.close()

    print("ready", flush=True)
    sys.stdin.readline()
    asyncio.run(main())
"""

# As the first step made it.
FIRST_AUDIT_LOG = """
    CREATE TABLE audit_log (
        id INTEGER NOT NULL, started_at DATETIME NOT NULL, request_id VARCHAR(255) NOT NULL,
        trace_id VARCHAR(32), endpoint VARCHAR(255) NOT NULL, operation VARCHAR(32) NOT NULL,
        model VARCHAR(255) NOT NULL, response_model VARCHAR(255), backend VARCHAR(32) NOT NULL,
        stream BOOLEAN NOT NULL, status INTEGER, outcome VARCHAR(16) NOT NULL,
        error_code VARCHAR(64), duration_s DOUBLE NOT NULL, queue_s DOUBLE,
        time_to_first_token_s DOUBLE, input_tokens INTEGER, cached_tokens INTEGER,
        output_tokens INTEGER, finish_reason VARCHAR(32), client_address VARCHAR(64),
        key_id VARCHAR(64), CONSTRAINT pk_audit_log PRIMARY KEY (id)
    )
"""


def url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def upgrader(path: Path, package: Path = PACKAGE) -> subprocess.Popen[str]:
    """Start a process that upgrades the database at `path` once it is sent a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(UPGRADE), url(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        cwd=path.parent,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def send_off(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def differences(connection: Connection) -> list[object]:
    """List what the tables declare and the migrations don't make, or the other way round."""
    context = MigrationContext.configure(connection, opts={"compare_server_default": True})
    return list(compare_metadata(context, Base.metadata))


def constraint_names(connection: Connection) -> set[str | None]:
    inspector = inspect(connection)
    return {
        inspector.get_pk_constraint(table)["name"]
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


async def run(database: Database, statement: str) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(text(statement))


async def test_the_migrations_make_what_the_tables_declare(tmp_path: Path) -> None:
    database = await open_database(url(tmp_path / "a.db"))
    await upgrade(database)
    async with database.engine.connect() as connection:
        left = await connection.run_sync(differences)
        named = await connection.run_sync(constraint_names)
    await database.close()
    assert left == []
    assert named == {table.primary_key.name for table in Base.metadata.tables.values()}


async def test_an_upgrade_of_what_is_up_to_date_changes_nothing(tmp_path: Path) -> None:
    database = await open_database(url(tmp_path / "a.db"))
    await upgrade(database)
    before = (tmp_path / "a.db-wal").read_bytes()
    await upgrade(database)
    after = (tmp_path / "a.db-wal").read_bytes()
    await database.close()
    assert after == before


async def test_an_upgrade_that_fails_leaves_nothing_half_done(tmp_path: Path) -> None:
    database = await open_database(url(tmp_path / "a.db"))
    # The first step makes its table and then stumbles over this index.
    await run(database, "CREATE TABLE other (x)")
    await run(database, "CREATE INDEX ix_audit_log_started_at ON other (x)")
    with pytest.raises(DatabaseUnavailable, match="can't be used"):
        await upgrade(database)
    async with database.engine.connect() as connection:
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    await database.close()
    assert tables == ["other"]


async def test_what_the_audit_log_held_before_it_took_every_request_is_still_there(
    tmp_path: Path,
) -> None:
    database = await open_database(url(tmp_path / "a.db"))
    await upgrade(database)
    await run(database, "DROP TABLE responses")
    await run(database, "DROP TABLE settings")
    await run(database, "DROP TABLE audit_log")
    await run(database, FIRST_AUDIT_LOG)
    await run(
        database,
        "INSERT INTO audit_log (started_at, request_id, endpoint, operation, model, backend,"
        " stream, outcome, duration_s) VALUES ('2026-05-04 12:00:00.000000', 'old', '/v1', 'chat',"
        " 'm', 'mlx', 1, 'completed', 1.5)",
    )
    await run(database, "CREATE INDEX ix_audit_log_request_id ON audit_log (request_id)")
    await run(database, "CREATE INDEX ix_audit_log_started_at ON audit_log (started_at)")
    await run(database, "UPDATE alembic_version SET version_num = '0001'")
    await upgrade(database)
    async with database.engine.connect() as connection:
        left = await connection.run_sync(differences)
        rows = await connection.execute(
            text("SELECT request_id, backend, stream, duration_s, error_type FROM audit_log")
        )
        # Traces have always called that backend `local`.
        assert rows.fetchall() == [("old", "local", 1, 1.5, None)]
    await database.close()
    assert left == []


async def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    database = await open_database(url(tmp_path / "a.db"))
    await upgrade(database)
    await run(database, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseUnavailable, match="written by a newer MLX Manager"):
        await upgrade(database)
    await database.close()


def test_processes_that_start_at_once_all_find_the_schema(tmp_path: Path) -> None:
    processes = [upgrader(tmp_path / "a.db") for _ in range(3)]
    for process in processes:
        send_off(process)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, outputs


def test_an_upgrade_says_nothing_even_where_logs_are_shown(tmp_path: Path) -> None:
    assert upgrader(tmp_path / "a.db").communicate("go\n", timeout=60) == ("", "")


def test_the_migrations_are_found_wherever_the_package_is_installed(tmp_path: Path) -> None:
    package = tmp_path / "100% somewhere else" / "mlx_manager"
    shutil.copytree(
        PACKAGE, package, ignore=shutil.ignore_patterns("starter", "web", "__pycache__")
    )
    process = upgrader(tmp_path / "a.db", package)
    assert process.communicate("go\n", timeout=60) == ("", "")
    assert (tmp_path / "a.db").exists()
