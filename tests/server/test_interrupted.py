"""A server that is killed in mid-stream: its next start closes the request as interrupted."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.conftest import ENDLESS_TOKENS
from tests.support.process import Started, started
from tests.support.running import wait_until

ENDLESS: dict[str, Any] = {
    "model": "test/tiny",
    "prompt": "Count to a million.",
    "max_tokens": ENDLESS_TOKENS,
    "temperature": 0,
    "stream": True,
}


def rows(folder: Path) -> dict[str, tuple[str, float | None]]:
    with closing(sqlite3.connect(folder / "mlx.db")) as database:
        query = "SELECT request_id, outcome, duration_s FROM audit_log"
        return {name: (outcome, seconds) for name, outcome, seconds in database.execute(query)}


def outcome(folder: Path, request_id: str) -> str | None:
    return rows(folder).get(request_id, (None,))[0]


@contextmanager
def answering(server: Started, folder: Path, request_id: str) -> Iterator[None]:
    """Have a stream in the middle of its answer, written down as running, until the block ends."""
    headers = {"X-Request-ID": request_id}
    url = f"{server.url}/v1/completions"
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", url, json=ENDLESS, headers=headers) as stream,
    ):
        assert stream.status_code == 200
        engines = psutil.Process(server.process.pid).children(recursive=True)
        # Held, so that the answer lasts as long as the test needs.
        for engine in engines:
            engine.suspend()
        try:
            wait_until(lambda: outcome(folder, request_id) == "running")
            yield
        finally:
            for engine in engines:
                engine.resume()


def test_a_request_whose_server_was_killed_is_interrupted_after_the_next_start(
    tmp_path: Path, model_dir: Path
) -> None:
    arguments = ("server", "--model-dir", str(model_dir))
    with started(tmp_path, *arguments) as survivor, answering(survivor, tmp_path, "survives"):
        with started(tmp_path, *arguments) as victim, answering(victim, tmp_path, "killed"):
            victim.process.kill()
            victim.wait()
        assert outcome(tmp_path, "killed") == "running", "nobody has closed it yet"
        with started(tmp_path, *arguments):
            wait_until(lambda: outcome(tmp_path, "killed") == "interrupted", 10)
        assert outcome(tmp_path, "survives") == "running", "its server is alive"
    assert outcome(tmp_path, "survives") == "cancelled", "a clean stop loses no row"
    _, seconds = rows(tmp_path)["killed"]
    assert seconds is not None
    assert seconds > 0


def test_the_page_leads_to_no_trace_that_was_lost_with_its_server(
    tmp_path: Path, model_dir: Path
) -> None:
    arguments = ("serve", "--model-dir", str(model_dir))
    with started(tmp_path, *arguments) as victim:
        whole = httpx.post(
            f"{victim.url}/v1/completions",
            json=ENDLESS | {"stream": False, "max_tokens": 2},
            timeout=60,
        )
        with answering(victim, tmp_path, "killed"):
            victim.process.kill()
            victim.wait()
    with started(tmp_path, *arguments) as next_one:
        wait_until(lambda: outcome(tmp_path, "killed") == "interrupted", 10)
        page = httpx.get(f"{next_one.url}/requests")
        [trace_id] = trace_ids(tmp_path, "killed")
        assert httpx.get(f"{next_one.url}/traces/{trace_id}").status_code == 404
    assert page.status_code == 200
    assert "its trace was lost with the server" in page.text
    assert f"/traces/{trace_id}" not in page.text
    assert f"/traces/{whole.headers['X-Trace-ID']}" in page.text, "others have their links"


def trace_ids(folder: Path, request_id: str) -> list[str]:
    with closing(sqlite3.connect(folder / "mlx.db")) as database:
        query = "SELECT trace_id FROM audit_log WHERE request_id = ?"
        return [trace_id for (trace_id,) in database.execute(query, [request_id])]
