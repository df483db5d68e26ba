"""One trace is the same wherever it is read: in the store, at an OTLP receiver, exported and brought in elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from mlx_manager.observability.span_record import SpanEvent, SpanLink, SpanRecord, Value
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.store import TraceStore
from tests.observability.conftest import interpreter
from tests.support.collector import Collector, collecting
from tests.traces.conftest import TINY

# Where telemetry goes is fixed when it is configured, once per process: so in one of its own. An agent asks for an
# answer and for a model that isn't there; its own spans have what the server's have no reason for today.
SERVED = """
import json
from pathlib import Path
from mlx_manager.observability.setup import TelemetryOptions, configure, flush
configure(TelemetryOptions("mlx-test"))

import httpx
from opentelemetry import propagate, trace
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags
from mlx_manager.app import create_app
from tests.support.running import running, settings_for, wait_until

LISTS = {"texts": ["a", "ü"], "numbers": [1, 2**53 + 1], "halves": [0.5, -1.5], "answers": [True, False]}
OTHER = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))
tracer = trace.get_tracer("agent")

def ask(url, kind, model, long, **more):
    links, attributes = [Link(OTHER, {"why": "waited", **LISTS})], {"long": long, "most": 2**63 - 1, **LISTS}
    with tracer.start_as_current_span("ask", kind=kind, links=links, attributes=attributes) as span:
        span.add_event("moment", {"at": 1, **LISTS})
        headers = {}
        propagate.inject(headers)
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
        answer = httpx.post(url + "/v1/chat/completions", json=body, headers=headers, timeout=60)
        span.set_status(StatusCode.OK if answer.status_code == 200 else StatusCode.ERROR)
        if answer.status_code != 200:
            span.record_exception(ValueError("quotes the input"))
    return f"{span.get_span_context().trace_id:032x}"

with running(create_app(settings_for(Path.cwd(), Path(%(model_dir)r)))) as server:
    store = server.state.traces
    asked = {
        "answered": ask(
            server.url, SpanKind.CLIENT, %(model)r, "x" * 5000, max_tokens=8, seed=1, stop=["END", "STOP"]
        ),
        "failed": ask(server.url, SpanKind.PRODUCER, "no/such", "y sk-" + "z" * 996),
    }
    for trace_id in asked.values():
        wait_until(lambda: (found := store.get_trace(trace_id)) and "server" in [one.kind for one in found.spans])
    assert store.flush(30) and flush(30)
    exports = {
        name: httpx.get(f"{server.url}/api/traces/{trace_id}/otlp").text for name, trace_id in asked.items()
    }
print(json.dumps([asked, exports]))
"""
KINDS = {
    Span.SPAN_KIND_INTERNAL: "internal",
    Span.SPAN_KIND_SERVER: "server",
    Span.SPAN_KIND_CLIENT: "client",
    Span.SPAN_KIND_PRODUCER: "producer",
}
STATUSES = {
    Status.STATUS_CODE_UNSET: "unset",
    Status.STATUS_CODE_OK: "ok",
    Status.STATUS_CODE_ERROR: "error",
}


@dataclass(frozen=True)
class Asked:
    """One trace, as each of them has it."""

    trace_id: str
    stored: dict[str, SpanRecord]
    received: dict[str, SpanRecord]
    exported: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> dict[str, Asked]:
    """The trace of a chat that was `answered`, and of one that `failed`."""
    folder = tmp_path_factory.mktemp("served")
    code = SERVED % {"model_dir": str(model_dir), "model": TINY}
    with collecting() as collector:
        done = interpreter(folder)(code, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        assert done.returncode == 0, done.stderr
        received = [*sent_to(collector)]
    asked, exports = json.loads(done.stdout.splitlines()[-1])
    with TraceReader(folder / "traces.db") as reader:
        return {
            name: Asked(
                trace_id,
                by_id(spans_in(reader, trace_id)),
                by_id(span for span in received if span.trace_id == trace_id),
                exports[name],
            )
            for name, trace_id in asked.items()
        }


@pytest.mark.parametrize("name", ["answered", "failed"])
def test_a_receiver_is_sent_what_the_store_holds(served: dict[str, Asked], name: str) -> None:
    asked = served[name]
    assert asked.received == asked.stored


@pytest.mark.parametrize("name", ["answered", "failed"])
def test_an_export_brought_into_another_store_is_the_same_there(
    served: dict[str, Asked], name: str, http: httpx.Client, kept: TraceStore
) -> None:
    asked = served[name]
    headers = {"Content-Type": "application/json"}
    answer = http.post("/otlp/v1/traces", content=asked.exported, headers=headers)
    assert (answer.status_code, answer.json()) == (200, {})
    assert kept.flush(30)
    assert by_id(spans_in(kept, asked.trace_id)) == asked.stored


def test_what_was_compared_has_every_part_of_a_span(served: dict[str, Asked]) -> None:
    answered, failed = (list(served[name].stored.values()) for name in ("answered", "failed"))
    names = {span.name for span in answered}
    assert {"ask", "POST /v1/chat/completions", f"chat {TINY}", "prefill", "decode"} <= names
    (ask,) = [span for span in answered if span.name == "ask"]
    (other,) = [span for span in failed if span.name == "ask"]
    assert ask.attributes["numbers"] == (1, 2**53 + 1)
    assert ask.links[0].attributes["answers"] == (True, False)
    assert ask.events[0].attributes["halves"] == (0.5, -1.5)
    assert len(str(ask.attributes["long"])) < 5000
    assert "zzz" not in str(other.attributes["long"])
    assert [event.name for event in other.events] == ["moment", "exception"]
    assert "quotes the input" not in repr(failed)
    everything = answered + failed
    assert {span.status for span in everything} == {"unset", "ok", "error"}
    assert {span.kind for span in everything} == {"internal", "server", "client", "producer"}
    assert all(span.resource["service.name"] == span.service == "mlx-test" for span in everything)


def spans_in(reader: TraceReader, trace_id: str) -> tuple[SpanRecord, ...]:
    found = reader.get_trace(trace_id)
    assert found is not None
    return found.spans


def by_id(spans: Iterable[SpanRecord]) -> dict[str, SpanRecord]:
    return {span.span_id: span for span in spans}


def sent_to(collector: Collector) -> Iterator[SpanRecord]:
    """All spans that it got, read by the protocol's types and none of our code."""
    for path, body in collector.bodies:
        if path != "/v1/traces":
            continue
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = values(resource.resource.attributes)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    yield record(span, scope.scope.name, attributes)


def record(span: Span, scope: str, resource: dict[str, Value]) -> SpanRecord:
    return SpanRecord(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex() or None,
        name=span.name,
        kind=KINDS[span.kind],  # type: ignore[arg-type]
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=STATUSES[span.status.code],  # type: ignore[arg-type]
        service=str(resource["service.name"]),
        scope=scope,
        attributes=values(span.attributes),
        resource=resource,
        events=tuple(
            SpanEvent(event.name, event.time_unix_nano, values(event.attributes))
            for event in span.events
        ),
        links=tuple(
            SpanLink(link.trace_id.hex(), link.span_id.hex(), values(link.attributes))
            for link in span.links
        ),
    )


def values(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: value(pair.value) for pair in pairs}


def value(told: AnyValue) -> Value:
    kind = told.WhichOneof("value")
    assert kind is not None
    if kind == "array_value":
        return tuple(value(item) for item in told.array_value.values)  # type: ignore[return-value]
    found: Value = getattr(told, kind)
    return found
