"""A writer's process that is killed: the file is whole, and only the last rows are missing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Puts a row each millisecond and says so.
WRITE = """
    import asyncio, itertools, sys, time
    from mlx_manager.database import open_database, upgrade
    from mlx_manager.mlx_server.audit.writer import AuditWriter
    from tests.audit.rows import make_record

    async def main():
        database = await open_database(sys.argv[1])
        await upgrade(database)
        async with AuditWriter(database) as writer:
            for number in itertools.count():
                writer.put(make_record(str(number)))
                print(number, time.monotonic(), flush=True)
                await asyncio.sleep(0.001)

    asyncio.run(main())
"""


def put_until_killed(file: Path, rows: int) -> list[float]:
    """Run the writing process, kill it after so many rows, and return when each row was put."""
    times: list[float] = []
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITE), f"sqlite+aiosqlite:///{file}"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            times.append(float(line.split()[1]))
            if len(times) == rows:
                process.kill()
    return times


def test_a_kill_loses_no_more_than_the_last_batch(tmp_path: Path) -> None:
    times = put_until_killed(tmp_path / "a.db", rows=2000)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        [[health]] = connection.execute("PRAGMA integrity_check").fetchall()
        written = connection.execute("SELECT request_id FROM audit_log ORDER BY id").fetchall()
    connection.close()
    assert health == "ok"
    assert [int(number) for (number,) in written] == list(range(len(written)))
    # A batch forms in 0.25 s; the rest is for a machine with much else to do.
    assert written
    assert times[-1] - times[min(len(written), len(times) - 1)] < 1.5
