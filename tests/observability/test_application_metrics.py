"""What a metric reader finds after chats through the whole server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_manager.observability import attributes as names
from tests.conftest import TINY
from tests.observability.conftest import Python

HISTOGRAMS = (names.REQUEST_DURATION, names.TIME_TO_FIRST_TOKEN, names.TIME_PER_OUTPUT_TOKEN)

# Readers are given when telemetry is configured, which happens once per process: so in one of its own.
CHATS = """
import asyncio
import json
from pathlib import Path
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from mlx_manager.observability.setup import TelemetryOptions, configure
reader = InMemoryMetricReader()
configure(TelemetryOptions("mlx-test"), metric_readers=[reader])

import httpx
from mlx_manager.mlx_server.app import create_app
from tests.support.running import running, settings_for

def ask(url, model, **more):
    body = {{"model": model, "messages": [{{"role": "user", "content": "Hello"}}], **more}}
    return httpx.post(url + "/v1/chat/completions", json=body, timeout=60).status_code

with running(create_app(settings_for(Path.cwd(), Path({model_dir!r})))) as server:
    statuses = [
        ask(server.url, {model!r}, max_tokens=8),
        ask(server.url, {model!r}, max_tokens=8, stream=True),
        ask(server.url, {model!r}, max_tokens=1),
        ask(server.url, "no/such"),
    ]
    asyncio.run(server.close_books())
    data = reader.get_metrics_data()

print(json.dumps([statuses, [
    {{"name": metric.name, "unit": metric.unit, "count": point.count, "sum": point.sum,
      "max": point.max, "bounds": list(point.explicit_bounds), "dimensions": dict(point.attributes)}}
    for resource in data.resource_metrics
    for scope in resource.scope_metrics
    for metric in scope.metrics if metric.name.startswith("gen_ai.")
    for point in metric.data.data_points
]]))
"""

# A row of an engine that nobody waits for is a fault, and must be made to be seen.
LOST_ROW = """
from pathlib import Path
from mlx_manager.mlx_server.observability.logfire_config import configure_logfire
configure_logfire(metrics=True)

import httpx
from mlx_manager.mlx_server.app import create_app
from tests.support.running import running, settings_for, wait_until
from tests.support.scrape import Scrape
from tools.random_model import Shape, make_random_model

# Long enough to be there when the engine next says what it works on, which it does once a second.
make_random_model(Path("models/test/long"), Shape(context=40_000))
body = {"model": "test/long", "prompt": "x", "max_tokens": 30_000, "ignore_eos": True, "stream": True}
settings = settings_for(Path.cwd(), Path("models").resolve(), metrics=True)
with running(create_app(settings)) as server:

    def differing():
        found = Scrape.of(server.url).matching("mlx_engine_row_difference")
        return {one.labels["kind"]: one.value for one in found}

    def said(*counts):
        expected = dict(zip(("orphaned", "missing", "unbooked"), counts))
        wait_until(lambda: differing() == expected)

    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as answer:
        wait_until(lambda: Scrape.of(server.url).total("mlx_batch_width") == 1)
        said(0, 0, 0)
        server.resident("test/long").engine._streams.popitem()
        said(1, 0, 0)
        said(0, 0, 0)
"""


def test_a_row_that_nobody_waits_for_is_in_the_exported_difference(python: Python) -> None:
    done = python(LOST_ROW)

    assert done.returncode == 0, done.stderr


def test_chats_through_the_server_are_in_the_three_histograms(
    python: Python, model_dir: Path
) -> None:
    done = python(CHATS.format(model=TINY, model_dir=str(model_dir)))

    assert done.returncode == 0, done.stderr
    statuses, points = json.loads(done.stdout.splitlines()[-1])
    assert statuses == [200, 200, 200, 404]
    assert {point["name"] for point in points} == {metric.name for metric in HISTOGRAMS}
    for metric in HISTOGRAMS:
        for point in of(points, metric):
            assert tuple(point["bounds"]) == pytest.approx(metric.buckets)
            assert point["unit"] == "s"
            assert point["sum"] > 0
            assert point["max"] < 60

    answered = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mlx",
        "gen_ai.request.model": TINY,
        "gen_ai.response.model": TINY,
        "http.route": "/v1/chat/completions",
    }
    # A single token has a time, but no time between tokens.
    for metric, chats in zip(HISTOGRAMS, (3, 3, 2), strict=True):
        (point,) = [point for point in of(points, metric) if point["dimensions"] == answered]
        assert point["count"] == chats
    (refused,) = [point for point in points if point["dimensions"] != answered]
    assert (refused["name"], refused["count"]) == (names.REQUEST_DURATION.name, 1)
    assert refused["dimensions"]["error.type"] == "model_not_found"
    totals = {metric.name: sum(p["sum"] for p in of(points, metric)) for metric in HISTOGRAMS}
    assert totals[names.TIME_PER_OUTPUT_TOKEN.name] < totals[names.REQUEST_DURATION.name]
    assert totals[names.TIME_TO_FIRST_TOKEN.name] < totals[names.REQUEST_DURATION.name]


def of(points: list[dict[str, Any]], metric: names.Metric) -> list[dict[str, Any]]:
    return [point for point in points if point["name"] == metric.name]
