"""From a span that ends to a record in the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from mlx_manager.app import create_app
from mlx_manager.observability.setup import TelemetryOptions, configure
from mlx_manager.observability.span_record import SpanEvent, SpanLink, SpanRecord
from mlx_manager.observability.span_records import SpanRecorder
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.store import TraceStore
from tests.support.running import running, settings_for
from tests.traces.conftest import TINY, PlainTransport
from tests.traces.records import span_id, trace_id

SpanPromise = Callable[[], SpanRecord]


@pytest.fixture
def taken() -> list[SpanPromise]:
    return []


@pytest.fixture
def provider(taken: list[SpanPromise]) -> TracerProvider:
    """OpenTelemetry's own SDK, with the recorder behind it."""
    provider = TracerProvider(resource=Resource({"service.name": "mlx-test"}))
    provider.add_span_processor(SpanRecorder(taken.append))
    return provider


def test_a_record_says_what_its_span_said(
    provider: TracerProvider, taken: list[SpanPromise]
) -> None:
    tracer = provider.get_tracer("lib")
    other = SpanContext(5, 6, is_remote=True, trace_flags=TraceFlags(1))
    with tracer.start_as_current_span("outer", kind=SpanKind.SERVER) as outer:
        span = tracer.start_span("inner", links=[Link(other, {"why": "waited"})], start_time=1000)
        span.set_attributes({"text": "a", "list": [1, 2]})
        span.add_event("moment", {"at": 1}, timestamp=1500)
        span.set_status(Status(StatusCode.ERROR))
        span.end(2000)
    inner_record, outer_record = (promise() for promise in taken)
    context, parent = span.get_span_context(), outer.get_span_context()
    assert inner_record == SpanRecord(
        trace_id=f"{parent.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_span_id=outer_record.span_id,
        name="inner",
        kind="internal",
        start_ns=1000,
        end_ns=2000,
        status="error",
        service="mlx-test",
        scope="lib",
        attributes={"text": "a", "list": (1, 2)},
        resource={"service.name": "mlx-test"},
        events=(SpanEvent("moment", 1500, {"at": 1}),),
        links=(SpanLink(trace_id(5), span_id(6), {"why": "waited"}),),
    )
    assert (outer_record.kind, outer_record.parent_span_id) == ("server", None)


def test_pending_spans_and_lonely_statements_are_not_taken(
    provider: TracerProvider, taken: list[SpanPromise]
) -> None:
    tracer = provider.get_tracer("lib")
    tracer.start_span("begun", attributes={"logfire.span_type": "pending_span"}).end()
    tracer.start_span("PRAGMA", attributes={"db.system.name": "sqlite"}).end()
    with tracer.start_as_current_span("request"):
        tracer.start_span("SELECT", attributes={"db.system.name": "sqlite"}).end()
    assert [promise().name for promise in taken] == ["SELECT", "request"]


def test_a_traceparent_that_is_not_sampled_is_kept_here_all_the_same(
    http: httpx.Client, kept: TraceStore
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-00"}
    body = {"model": TINY, "prompt": "x", "max_tokens": 1}
    answer = http.post("/v1/completions", json=body, headers=headers)
    assert (answer.status_code, answer.headers["X-Trace-ID"]) == (200, trace)
    while (found := kept.get_trace(trace)) is None or found.summary.model is None:
        assert kept.flush(30)
    assert found.summary.model == TINY


def test_what_the_last_request_did_is_in_the_file_when_the_server_has_stopped(
    tmp_path: Path, model_dir: Path
) -> None:
    configure(TelemetryOptions("mlx-test"))
    body = {"model": TINY, "prompt": "x", "max_tokens": 1}
    with (
        running(create_app(settings_for(tmp_path, model_dir))) as server,
        httpx.Client(transport=PlainTransport(), timeout=60) as client,
    ):
        answer = client.post(f"{server.url}/v1/completions", json=body)
    with TraceReader(tmp_path / "traces.db") as reader:
        trace = reader.get_trace(answer.headers["X-Trace-ID"])
    assert trace is not None
    assert trace.spans[0].name == "POST /v1/completions"
    assert not (tmp_path / "traces.db-wal").exists()
