"""What a server keeps it keeps for as long, and as much of it, as the settings say, each for itself."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from mlx_manager.traces.store import TraceStore
from tests.support.process import started
from tests.support.running import wait_until
from tests.traces.records import chat, put, trace_id

# 0.9 s, of which more have gone when the next server is up.
NO_TIME = "0.00001"
OLDEST, NEWEST = 1, 300


def count(database: Path, query: str) -> int:
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        found: int = connection.execute(query).fetchone()[0]
        return found


def kept(folder: Path) -> set[str]:
    """Which of all that the first server left are still there."""
    traces, books = folder / "traces.db", folder / "mlx.db"
    first = "SELECT count(*) FROM {} WHERE {} = '{}'"
    counts = {
        "audit": count(books, "SELECT count(*) FROM audit_log WHERE request_id = 'the-first'"),
        "response": count(books, "SELECT count(*) FROM responses"),
        "trace": count(traces, first.format("traces", "hex(trace_id)", trace_id(NEWEST).upper())),
        "old trace": count(
            traces, first.format("traces", "hex(trace_id)", trace_id(OLDEST).upper())
        ),
    }
    return {name for name, number in counts.items() if number}


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server that has answered one response, and has 3 MiB of traces."""
    folder = tmp_path_factory.mktemp("left")
    with started(folder, "server") as server:
        body = {"model": "mlx-manager/starter", "input": "Hello"}
        headers = {"X-Request-ID": "the-first"}
        answer = httpx.post(f"{server.url}/v1/responses", json=body, headers=headers, timeout=60)
        assert answer.is_success
    with TraceStore(folder / "traces.db") as store:
        for number in range(OLDEST, NEWEST + 1):
            put(store, chat(number, attributes={"gen_ai.input.messages": "long " * 2000}))
    assert kept(folder) == {"audit", "response", "trace", "old trace"}
    return folder


@pytest.mark.parametrize(
    ("setting", "value", "gone"),
    [
        ("MLX_SERVER_AUDIT_RETENTION_DAYS", NO_TIME, {"audit"}),
        ("MLX_SERVER_RESPONSES_RETENTION_DAYS", NO_TIME, {"response"}),
        ("MLX_SERVER_TRACES_RETENTION_DAYS", NO_TIME, {"trace", "old trace"}),
        ("MLX_SERVER_TRACES_MAX_BYTES", str(2**20), {"old trace"}),
    ],
)
def test_each_setting_bounds_what_it_says(
    left: Path, tmp_path: Path, setting: str, value: str, gone: set[str]
) -> None:
    folder = shutil.copytree(left, tmp_path / "copy")
    with started(folder, "server", **{setting: value}):
        wait_until(lambda: not kept(folder) & gone, 60)
    assert kept(folder) == {"audit", "response", "trace", "old trace"} - gone
