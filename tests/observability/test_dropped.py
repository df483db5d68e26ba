"""What each sink of a running server loses is counted under the name that the page of telemetry gives it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.conftest import TINY
from tests.observability.conftest import TOKEN
from tests.support.collector import collecting
from tests.support.process import Started, started
from tests.support.running import wait_until
from tests.support.scrape import Scrape

DROPPED = "mlx_telemetry_dropped_total"
REFUSE = "CREATE TRIGGER refuse BEFORE INSERT ON {} BEGIN SELECT RAISE(ABORT, 'no'); END"


@pytest.fixture
def lossy(tmp_path: Path, model_dir: Path) -> Iterator[Started]:
    """A server whose receivers all fail, and that holds back what neither fails nor is slow."""
    with (
        collecting("fails") as broken,
        started(
            tmp_path,
            *("server", "--model-dir", str(model_dir), "--model", TINY),
            MLX_SERVER_METRICS="true",
            MLX_SERVER_TRACE_SAMPLE_RATIO="0",
            LOGFIRE_TOKEN=TOKEN,
            LOGFIRE_BASE_URL=broken.url,
            OTEL_EXPORTER_OTLP_ENDPOINT=broken.url,
            OTEL_EXPORTER_OTLP_TIMEOUT="1",
            OTEL_METRIC_EXPORT_INTERVAL="200",
        ) as server,
    ):
        yield server


def refuse_rows(file: Path, table: str) -> None:
    """Have a database take no row of a table, as a full or faulty one does."""
    with closing(sqlite3.connect(file, timeout=30)) as database, database:
        database.execute(REFUSE.format(table))


def ask(server: Started, model: str) -> int:
    body = {"model": model, "prompt": "x", "max_tokens": 1}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code


def lost(server: Started) -> set[str]:
    return {
        sample.labels["sink"]
        for sample in Scrape.of(server.url).matching(DROPPED)
        if sample.value > 0
    }


def test_what_any_sink_loses_is_counted_under_its_name(lossy: Started, tmp_path: Path) -> None:
    assert not lost(lossy) & {"audit", "store"}
    refuse_rows(tmp_path / "mlx.db", "audit_log")
    refuse_rows(tmp_path / "traces.db", "spans")
    # The second one fails, and is sent for that.
    assert (ask(lossy, TINY), ask(lossy, "no/such")) == (200, 404)

    sinks = {"audit", "store", "sampler", "logfire", "otlp", "logfire_metrics", "otlp_metrics"}
    wait_until(lambda: lost(lossy) == sinks, 60)
