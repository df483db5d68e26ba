"""A span is the same in our store, at an OTLP receiver, and in a store that it was moved to."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from mlx_manager.observability.span_record import SpanRecord
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.store import TraceStore
from tests.conftest import TINY
from tests.observability.conftest import interpreter
from tests.support.collector import Collector, collecting
from tests.support.otlp import records
from tests.support.process import started
from tests.support.running import wait_until
from tests.traces.conftest import PlainTransport

CHAT = {
    "model": TINY,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 5,
    "temperature": 0.5,
    "seed": 7,
    "stop": ["never said", "nor this"],
    "stream": True,
}

# Makes spans with all that a span can have, for the store and for the collector.
EVERYTHING = """
import sys
from pathlib import Path
from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from mlx_manager.observability.setup import TelemetryOptions, configure, flush, span_sink
from mlx_manager.observability.span_records import SpanRecorder
from mlx_manager.traces.store import TraceStore
configure(TelemetryOptions("test"))
tracer = trace.get_tracer("lib")
other = SpanContext(5, 6, is_remote=True)
with TraceStore(Path(%r)) as store, span_sink(SpanRecorder(store.put), "store"):
    with tracer.start_as_current_span("outer", kind=SpanKind.SERVER) as outer:
        for kind in SpanKind:
            links = [Link(other, {"why": "waited", "ids": [1, 2]}), Link(outer.get_span_context())]
            with tracer.start_as_current_span(kind.name, kind=kind, links=links) as span:
                span.set_attributes({"text": "\\u00fc", "yes": True, "big": 2**62, "half": 0.5})
                span.set_attributes({"texts": ["a", "b"], "flags": [True, False], "halves": [0.5, 1.5]})
                span.add_event("stalled", {"seconds": 0.25, "list": [1, 2]})
                span.add_event("went on")
                span.set_status(Status(StatusCode.ERROR if kind is SpanKind.CLIENT else StatusCode.OK))
    flush(10)
    print(f"{outer.get_span_context().trace_id:032x}")
"""


def sent(collector: Collector, trace_id: str) -> dict[str, SpanRecord]:
    """The spans of a trace at the collector, by id."""
    found = records(body for path, body in collector.bodies if path == "/v1/traces")
    return {span: record for (trace, span), record in found.items() if trace == trace_id}


def stored(path: Path, trace_id: str) -> dict[str, SpanRecord]:
    """The spans of a trace in a store, by id."""
    with TraceReader(path) as reader:
        trace = reader.get_trace(trace_id)
    return {span.span_id: span for span in trace.spans} if trace else {}


def names_of(spans: dict[str, SpanRecord]) -> set[str]:
    return {span.name for span in spans.values()}


def test_a_chat_is_the_same_in_the_store_at_a_collector_and_moved_to_another_store(
    tmp_path: Path, model_dir: Path, http: httpx.Client, kept: TraceStore
) -> None:
    with collecting() as collector:
        with (
            started(
                tmp_path,
                "serve",
                MLX_SERVER_MODEL_DIRS=str(model_dir),
                OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            ) as server,
            httpx.Client(base_url=server.url, transport=PlainTransport(), timeout=60) as client,
        ):
            answer = client.post("/v1/chat/completions", json=CHAT)
            trace_id = answer.headers["X-Trace-ID"]
            file = tmp_path / "traces.db"
            # The server's and the chat's span end last, in either order.
            wait_until(
                lambda: (
                    {"POST /v1/chat/completions", f"chat {TINY}"}
                    <= names_of(stored(file, trace_id))
                )
            )
            exported = client.get(f"/api/traces/{trace_id}/otlp")
        here, there = stored(file, trace_id), sent(collector, trace_id)
    assert {"prefill", "decode"} <= names_of(here)
    assert there == here
    chat = next(span for span in there.values() if span.name.startswith("chat"))
    assert chat.attributes["gen_ai.request.stop_sequences"] == ("never said", "nor this")

    assert exported.status_code == 200, exported.text
    headers = {"Content-Type": "application/json"}
    assert (
        json.loads(http.post("/otlp/v1/traces", content=exported.content, headers=headers).content)
        == {}
    )
    assert kept.flush(30)
    assert stored(kept.path, trace_id) == here


def test_all_that_a_span_can_have_arrives(
    tmp_path: Path, http: httpx.Client, kept: TraceStore
) -> None:
    file = tmp_path / "spans.db"
    with collecting() as collector:
        done = interpreter(tmp_path)(
            EVERYTHING % str(file), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url
        )
        trace_id = done.stdout.strip()
        here, there = stored(file, trace_id), sent(collector, trace_id)
    assert len(here) == 6, done.stderr
    assert there == here
    span = next(span for span in here.values() if span.kind == "client")
    assert (span.status, len(span.links)) == ("error", 2)
    assert [event.name for event in span.events] == ["stalled", "went on"]
    assert span.attributes["texts"] == ("a", "b")
