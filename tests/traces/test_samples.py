"""How busy and how full models were: what is kept, for how long, and how columns add it up."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from mlx_manager.app import create_app
from mlx_manager.errors import InvalidQuery
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.samples import Gauges, Sample
from mlx_manager.traces.store import StoreOptions, TraceStore
from tests.conftest import ENDLESS_TOKENS
from tests.support.running import running, settings_for, wait_until
from tests.traces.conftest import TINY
from tests.traces.records import START_NS, S, put, server, trace_id


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    """An empty store an hour after the moment that all tests begin at: samples age by their own time."""
    with TraceStore(tmp_path / "traces.db", clock_ns=lambda: START_NS + 3600 * S) as store:
        yield store


def keep(store: TraceStore, *samples: Sample) -> None:
    for sample in samples:
        assert store.put_sample(sample)
    assert store.flush(30)


def sample(at_s: float, process: int = 1, model: str = "a", **values: float) -> Sample:
    return Sample(START_NS + round(at_s * S), process, model, **values)  # type: ignore[arg-type]


def asked(store: TraceStore, seconds: int, buckets: int, model: str | None = None) -> Gauges:
    return store.gauges(START_NS, START_NS + seconds * S, model, buckets)


def test_models_of_one_moment_are_added_and_moments_averaged_or_the_most_taken(
    store: TraceStore,
) -> None:
    keep(
        store,
        sample(0, waiting_mean=1.0, waiting_peak=4, kv_bytes=100, weights_bytes=1000),
        sample(0, model="b", waiting_mean=2.0, waiting_peak=2, kv_bytes=10, weights_bytes=500),
        sample(15, waiting_mean=0.0, waiting_peak=1, kv_bytes=300, weights_bytes=1000),
        sample(30, running_mean=2.5, running_peak=3, prefix_cache_bytes=7, buffers_bytes=9),
    )

    first, second = asked(store, 60, 2).buckets

    assert (first.waiting_mean, first.waiting_peak) == (1.5, 6)
    assert (first.weights_bytes, first.kv_bytes) == (1500, 300)
    # All kinds of one moment together: not the most of each, which need not have been at once.
    assert first.held_bytes == 1610
    assert (second.running_mean, second.running_peak) == (2.5, 3)
    assert (second.prefix_cache_bytes, second.buffers_bytes, second.held_bytes) == (7, 9, 16)
    assert (first.start_ns, second.start_ns) == (START_NS, START_NS + 30 * S)


def test_processes_that_write_into_one_file_are_added_though_their_moments_differ(
    store: TraceStore,
) -> None:
    for at_s in (0, 15, 30):
        keep(store, sample(at_s, 1, running_mean=2.0), sample(at_s + 4, 2, running_mean=3.0))

    (column,) = asked(store, 60, 1).buckets

    assert column.running_mean == 5.0


def test_a_model_that_was_away_counts_as_zero_and_a_time_without_a_server_is_a_hole(
    store: TraceStore,
) -> None:
    keep(
        store, sample(1, waiting_peak=5), sample(2, model="b", waiting_peak=7), sample(11, model="")
    )

    assert [one.waiting_peak for one in asked(store, 30, 3).buckets] == [7, 0, None]
    assert [one.waiting_peak for one in asked(store, 30, 3, "a").buckets] == [5, 0, None]
    assert [one.waiting_peak for one in asked(store, 30, 3, "never").buckets] == [0, 0, None]


def test_the_end_of_the_time_is_outside_and_must_come_after_its_beginning(
    store: TraceStore,
) -> None:
    keep(store, sample(10, waiting_peak=1))

    assert asked(store, 10, 1).buckets[0].waiting_peak is None
    assert asked(store, 11, 1).buckets[0].waiting_peak == 1
    with pytest.raises(InvalidQuery, match="must be after"):
        asked(store, 0, 1)


def test_samples_are_kept_as_long_as_traces(tmp_path: Path) -> None:
    now_ns = [START_NS]
    options = StoreOptions(max_age_s=60, retention_every_s=0.05)
    with TraceStore(tmp_path / "traces.db", options, clock_ns=lambda: now_ns[0]) as store:
        keep(store, sample(0), sample(50))
        now_ns[0] += 70 * S
        wait_until(lambda: asked(store, 40, 1).buckets[0].held_bytes is None)
        assert asked(store, 60, 1).buckets[0].held_bytes == 0


def test_samples_go_with_the_traces_that_made_room(tmp_path: Path) -> None:
    now_ns = [START_NS]
    options = StoreOptions(max_bytes=300_000, retention_every_s=0.05)
    with TraceStore(tmp_path / "traces.db", options, clock_ns=lambda: now_ns[0]) as store:
        keep(store, sample(0))
        for number in range(1, 40):
            now_ns[0] += S
            keep(store, sample(number))
            put(store, server(number, attributes={f"n{n}": "x" * 900 for n in range(20)}))
        wait_until(lambda: store.get_trace(trace_id(5)) is None)
        wait_until(lambda: asked(store, 5, 1).buckets[0].held_bytes is None)
        assert store.get_trace(trace_id(39)) is not None
        assert (
            store.gauges(START_NS + 39 * S, START_NS + 40 * S, None, 1).buckets[0].held_bytes == 0
        )


def test_a_server_that_is_used_and_stopped_has_written_down_what_its_engine_held(
    tmp_path: Path, model_dir: Path
) -> None:
    settings = settings_for(tmp_path, model_dir, preload=(TINY,))
    weights = sum(file.stat().st_size for file in (model_dir / TINY).glob("*.safetensors"))
    with running(create_app(settings)) as server:
        resident = server.resident(TINY)
        wait_until(lambda: resident.engine is not None and resident.engine.vitals is not None)
        answer = httpx.get(f"{server.url}/api/traces/gauges", params={"buckets": 3}, timeout=30)

    body = answer.json()
    assert answer.status_code == 200
    assert len(body["buckets"]) == 3
    with TraceReader(settings.traces_path) as reader:
        (column,) = reader.gauges(0, 2**62, None, 1).buckets
        (other,) = reader.gauges(0, 2**62, "another", 1).buckets
    assert column.weights_bytes is not None
    assert column.held_bytes is not None
    # The file has a header, too.
    assert 0.9 * weights < column.weights_bytes <= weights
    assert column.held_bytes >= column.weights_bytes
    assert other.weights_bytes == 0
    with closing(sqlite3.connect(settings.traces_path)) as connection:
        rows = connection.execute("SELECT DISTINCT model FROM samples").fetchall()
    assert rows == [(TINY,)]


def test_a_queue_between_two_samples_is_in_the_next_one(tmp_path: Path, model_dir: Path) -> None:
    settings = settings_for(tmp_path, model_dir, preload=(TINY,), max_batch=1)
    body = {"model": TINY, "prompt": "x", "max_tokens": ENDLESS_TOKENS, "temperature": 0}
    with ThreadPoolExecutor() as threads, running(create_app(settings)) as server:
        for _ in range(3):
            threads.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=300)
        engine = server.resident(TINY).engine
        assert engine is not None
        wait_until(lambda: engine.vitals is not None and engine.vitals.waiting >= 1)
        # The next look comes within a second.
        time.sleep(1.5)

    with TraceReader(settings.traces_path) as reader:
        (column,) = reader.gauges(0, 2**62, TINY, 1).buckets
    assert column.running_peak == 1
    assert column.waiting_peak is not None
    assert column.waiting_mean is not None
    assert 1 <= column.waiting_peak <= 2
    assert 0 < column.waiting_mean < column.waiting_peak
    assert column.kv_bytes


def test_gauges_can_be_asked_for_of_one_model(http: httpx.Client, kept: TraceStore) -> None:
    kept.put_sample(Sample(time.time_ns(), 1, "of/one", 1, 1, 1, 1, weights_bytes=4711))
    assert kept.flush(10)
    for model, expected in (("of/one", {None, 4711}), ("of/another", {None})):
        buckets = http.get("/api/traces/gauges", params={"model": model}).json()["buckets"]
        assert {bucket["weights_bytes"] for bucket in buckets} - {0} == expected


def test_a_query_of_gauges_that_makes_no_sense_is_a_problem_that_names_it(
    http: httpx.Client,
) -> None:
    answer = http.get("/api/traces/gauges", params={"since": "yesterday"})
    assert answer.status_code == 422
    assert answer.json()["param"] == "since"
