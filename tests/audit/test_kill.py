"""A writer's process that is killed: the file is whole, and only the last rows are missing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

from mlx_manager.mlx_server.audit.writer import BATCH_ROWS

ROOT = Path(__file__).parents[2]

# Puts a row each five milliseconds and says so: a batch is full after a second, and one leaves after a quarter of it.
WRITE = """
    import asyncio, itertools, sys
    from mlx_manager.database import open_database, upgrade
    from mlx_manager.mlx_server.audit.writer import AuditWriter
    from tests.audit.rows import make_record

    async def main():
        database = await open_database(sys.argv[1])
        await upgrade(database)
        async with AuditWriter(database) as writer:
            for number in itertools.count():
                writer.put(make_record(str(number)))
                print(number, flush=True)
                await asyncio.sleep(0.005)

    asyncio.run(main())
"""


def put_until_killed(file: Path, rows: int) -> int:
    """Run the writing process, kill it after so many rows, and return how many were put."""
    put = 0
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITE), f"sqlite+aiosqlite:///{file}"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            put = int(line) + 1
            if put == rows:
                process.kill()
    return put


def test_a_kill_loses_no_more_than_the_last_batch(tmp_path: Path) -> None:
    put = put_until_killed(tmp_path / "a.db", rows=3 * BATCH_ROWS)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        [[health]] = connection.execute("PRAGMA integrity_check").fetchall()
        written = connection.execute("SELECT request_id FROM audit_log ORDER BY id").fetchall()
    connection.close()
    assert health == "ok"
    assert [int(number) for (number,) in written] == list(range(len(written)))
    assert put - len(written) <= BATCH_ROWS
