"""The list, its filters and pages, and the figures."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_manager.errors import InvalidQuery
from mlx_manager.traces.listing import MOST_WORDS
from mlx_manager.traces.store import TraceStore
from mlx_manager.traces.summary import TraceFilter, TraceSummary
from tests.traces.records import START_NS, S, chat, put, server, span, trace_id

COUNT = 60


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TraceStore]:
    """Sixty traces that differ in all that can be asked for, a second apart, put in without order."""
    with TraceStore(tmp_path_factory.mktemp("many") / "traces.db") as store:
        numbers = list(range(1, COUNT + 1))
        random.Random(3).shuffle(numbers)
        for number in numbers:
            put(store, *trace(number))
        yield store


def trace(number: int) -> list[Any]:
    has_failed, was_left = number % 10 == 0, number % 10 == 5
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat" if number % 2 else "text_completion",
        "gen_ai.request.model": f"model-{number % 3}",
        "gen_ai.usage.input_tokens": number,
        "gen_ai.usage.output_tokens": number,
        "gen_ai.conversation.id": f"session-{number % 4}",
        "mlx.key.id": f"key-{number % 5}",
        "mlx.time_to_first_token_s": number / 100,
    }
    if has_failed:
        attributes["error.type"] = "engine_failed"
    if was_left:
        attributes["mlx.cancelled"] = True
    took: Any = {"at_s": number, "took_s": number / 10}
    route = "/v1/chat/completions" if number % 2 else "/v1/completions"
    return [
        server(number, name=f"POST {route}", attributes={"http.route": route}, **took),
        chat(number, status="error" if has_failed else "unset", attributes=attributes, **took),
    ]


def found(store: TraceStore, **wanted: Any) -> set[int]:
    page = store.list_traces(TraceFilter(**wanted), 500)
    return {int(line.trace_id, 16) for line in page.traces}


ALL = range(1, COUNT + 1)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, lambda n: True),
        ({"model": "model-1"}, lambda n: n % 3 == 1),
        ({"model": "model"}, lambda n: False),
        ({"status": "error"}, lambda n: n % 10 == 0),
        ({"status": "cancelled"}, lambda n: n % 10 == 5),
        ({"status": "ok"}, lambda n: n % 5 != 0),
        ({"operation": "chat"}, lambda n: n % 2 == 1),
        ({"endpoint": "/v1/completions"}, lambda n: n % 2 == 0),
        ({"error_type": "engine_failed"}, lambda n: n % 10 == 0),
        ({"session": "session-2"}, lambda n: n % 4 == 2),
        ({"key_id": "key-3"}, lambda n: n % 5 == 3),
        ({"min_duration_s": 3, "max_duration_s": 4}, lambda n: 30 <= n <= 40),
        ({"min_tokens": 20, "max_tokens": 40}, lambda n: 10 <= n <= 20),
        ({"since_ns": START_NS + 7 * S, "until_ns": START_NS + 9 * S}, lambda n: n in (7, 8)),
        ({"text": "DEL-2"}, lambda n: n % 3 == 2),
        ({"text": "/chat/"}, lambda n: n % 2 == 1),
        ({"text": "request-1"}, lambda n: str(n).startswith("1")),
        ({"text": trace_id(0x2A)}, lambda n: n == 0x2A),
        ({"text": trace_id(0x30)[:31]}, lambda n: n // 16 == 3),
        ({"text": "%"}, lambda n: False),
        ({"text": "request-1", "operation": "chat"}, lambda n: str(n)[0] == "1" and n % 2 == 1),
        ({"text": "model_1"}, lambda n: False),
        ({"status": "error", "model": "model-0", "min_tokens": 61}, lambda n: n % 30 == 0 and n > 30),
    ],
)  # fmt: skip
def test_a_filter_lets_through_what_fits(many: TraceStore, wanted: Any, fits: Any) -> None:
    assert found(many, **wanted) == {number for number in ALL if fits(number)}


@pytest.mark.parametrize("names", [MOST_WORDS - 1, MOST_WORDS, MOST_WORDS + 1, 2 * MOST_WORDS])
def test_a_text_is_found_among_any_number_of_names(tmp_path: Path, names: int) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        put(
            store, *(server(number, name=f"job {number:05} done") for number in range(1, names + 1))
        )
        for wanted in (1, names):
            assert found(store, text=f"b {wanted:05}") == {wanted}
        assert found(store, text=trace_id(names)) == {names}
        assert found(store, text="nowhere") == set()


@pytest.mark.parametrize("wanted", [TraceFilter(), TraceFilter(model="model-1", text="POST")])
@pytest.mark.parametrize("limit", [1, 7, 20, 60, 61])
def test_pages_hold_everything_once_newest_first(
    many: TraceStore, wanted: TraceFilter, limit: int
) -> None:
    lines: list[TraceSummary] = []
    cursor = None
    while True:
        page = many.list_traces(wanted, limit, cursor)
        lines += page.traces
        assert len(page.traces) <= limit
        if (cursor := page.next_cursor) is None:
            break
    assert tuple(lines) == many.list_traces(wanted, 500).traces
    assert [line.started_ns for line in lines] == sorted(
        (line.started_ns for line in lines), reverse=True
    )


def test_traces_of_the_same_moment_are_on_one_page_each(store: TraceStore) -> None:
    put(store, *(span(number, 1) for number in range(1, 8)))
    first = store.list_traces(TraceFilter(), 4)
    second = store.list_traces(TraceFilter(), 4, first.next_cursor)
    assert {line.trace_id for line in (*first.traces, *second.traces)} == {
        trace_id(number) for number in range(1, 8)
    }
    assert second.next_cursor is None


def test_a_new_trace_does_not_move_the_page_below(store: TraceStore) -> None:
    put(store, *(span(number, 1, at_s=number) for number in range(1, 5)))
    cursor = store.list_traces(TraceFilter(), 2).next_cursor
    put(store, span(9, 1, at_s=9))
    below = store.list_traces(TraceFilter(), 2, cursor).traces
    assert [int(line.trace_id, 16) for line in below] == [2, 1]


@pytest.mark.parametrize("cursor", ["", "x", "1-2", "f" * 16 + "-1", "7" * 16 + "-" + "1" * 16])
def test_a_cursor_of_another_kind_is_refused(many: TraceStore, cursor: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        many.list_traces(TraceFilter(), 5, cursor)
    assert caught.value.param == "cursor"


@pytest.mark.parametrize("unknown", ["", "x", "ab", "z" * 32, trace_id(999), trace_id(5) + "0"])
def test_a_trace_that_is_not_there_is_none(many: TraceStore, unknown: str) -> None:
    assert many.get_trace(unknown) is None


def test_ids_are_found_by_their_beginning(many: TraceStore) -> None:
    assert many.find_ids(trace_id(0x10)[:31]) == tuple(trace_id(n) for n in range(0x10, 0x1A))
    assert many.find_ids(trace_id(7)) == (trace_id(7),)
    assert many.find_ids("f") == many.find_ids("no") == ()


def test_the_names_of_models_are_in_order(many: TraceStore, store: TraceStore) -> None:
    assert many.models() == ("model-0", "model-1", "model-2")
    assert store.models() == ()


def expected(values: list[float], percent: int) -> float:
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def test_percentiles_are_exact_and_lead_to_a_trace(many: TraceStore) -> None:
    stats = many.stats(START_NS, START_NS + 100 * S, buckets=10)
    assert [model.model for model in stats.models] == ["model-0", "model-1", "model-2"]
    for remainder, model in enumerate(stats.models):
        mine = [n for n in ALL if n % 3 == remainder]
        assert model.requests == 20
        assert model.errors == sum(n % 10 == 0 for n in mine)
        assert model.cancelled == sum(n % 10 == 5 for n in mine)
        assert model.input_tokens == model.output_tokens == sum(mine)
        durations = [n / 10 for n in mine if n % 10 != 5]
        assert model.duration.count == len(durations)
        assert model.duration.p50_s == expected(durations, 50)
        assert model.duration.p95_s == expected(durations, 95)
        first = [n / 100 for n in mine if n % 5 != 0]
        assert model.time_to_first_token.p99_s == expected(first, 99)
        leads_to = model.duration.p95_trace_id
        assert leads_to is not None
        trace = many.get_trace(leads_to)
        assert trace is not None
        assert trace.summary.duration_ns / 1e9 == model.duration.p95_s
        assert model.time_per_output_token.count == 0
        assert model.time_per_output_token.p50_s is None


def test_columns_cover_the_time_and_add_up(many: TraceStore) -> None:
    stats = many.stats(START_NS, START_NS + 61 * S, buckets=7)
    assert len(stats.buckets) == 7
    starts = [bucket.start_ns for bucket in stats.buckets]
    assert starts == [START_NS + n * stats.bucket_ns for n in range(7)]
    assert starts[-1] + stats.bucket_ns >= stats.until_ns
    assert sum(bucket.requests for bucket in stats.buckets) == COUNT
    assert sum(bucket.output_tokens for bucket in stats.buckets) == sum(ALL)
    for number, bucket in enumerate(stats.buckets):
        inside = [
            n for n in ALL if (START_NS + n * S - stats.since_ns) // stats.bucket_ns == number
        ]
        assert bucket.p50_s == expected([n / 10 for n in inside if n % 10 != 5], 50)


def test_the_figures_of_one_model_are_those_of_that_model(many: TraceStore) -> None:
    everything = many.stats(START_NS, START_NS + 100 * S)
    one = many.stats(START_NS, START_NS + 100 * S, model="model-1")
    assert one.models == (everything.models[1],)
    assert sum(bucket.requests for bucket in one.buckets) == 20


def test_the_end_of_the_time_is_outside(many: TraceStore) -> None:
    stats = many.stats(START_NS + 5 * S, START_NS + 6 * S, buckets=1)
    assert stats.buckets[0].requests == 1
    assert many.stats(START_NS + 500 * S, START_NS + 600 * S).models == ()
    with pytest.raises(InvalidQuery):
        many.stats(START_NS, START_NS)


def test_a_request_that_reached_no_model_is_counted_without_one(store: TraceStore) -> None:
    put(store, server(1, attributes={"http.response.status_code": 400}))
    (model,) = store.stats(START_NS, START_NS + S).models
    assert (model.model, model.requests, model.errors) == (None, 1, 1)
    (line,) = store.list_traces(TraceFilter()).traces
    assert (line.status, line.http_status, line.model) == ("error", 400, None)
