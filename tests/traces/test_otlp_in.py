"""Spans of other processes come in by OTLP, whoever sends them, and nothing that they say about content is kept."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from mlx_manager.app import create_app
from mlx_manager.mlx_server.app import create_app as create_server
from mlx_manager.observability.span_record import SpanRecord
from mlx_manager.traces.store import TraceStore
from mlx_manager.traces.summary import Trace
from tests.support.running import RunningServer, running, settings_for, wait_until
from tests.traces.conftest import PlainTransport

PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}
PATH = "/otlp/v1/traces"
START_NS = 1_700_000_000_000_000_001


def hexadecimal(number: int, digits: int) -> str:
    return f"{number:0{digits}x}"


def json_span(trace: int = 1, span: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "traceId": hexadecimal(trace, 32),
        "spanId": hexadecimal(span, 16),
        "name": "work",
        "kind": 3,
        "startTimeUnixNano": str(START_NS),
        "endTimeUnixNano": str(START_NS + 5),
    } | changes


def json_request(*spans: dict[str, Any]) -> dict[str, Any]:
    service = {"key": "service.name", "value": {"stringValue": "agent"}}
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": [service]},
                "scopeSpans": [{"scope": {"name": "lib"}, "spans": list(spans)}],
            }
        ]
    }


def protobuf_request(count: int = 1, trace: int = 2, **values: str) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(count):
        span = scope.spans.add(
            trace_id=trace.to_bytes(16, "big"),
            span_id=(number + 1).to_bytes(8, "big"),
            name="work",
            start_time_unix_nano=START_NS,
            end_time_unix_nano=START_NS + 5,
        )
        for key, text in values.items():
            span.attributes.add(key=key).value.string_value = text
    return bytes(request.SerializeToString())


@pytest.fixture
def spans_of(kept: TraceStore) -> Callable[[int], tuple[SpanRecord, ...]]:
    """The spans of a trace, once all that was sent is stored."""

    def spans_of(trace: int) -> tuple[SpanRecord, ...]:
        assert kept.flush(30)
        found = kept.get_trace(hexadecimal(trace, 32))
        return found.spans if found else ()

    return spans_of


SpansOf = Callable[[int], tuple[SpanRecord, ...]]


def test_json_has_hex_ids_and_64_bit_numbers_as_text(http: httpx.Client, spans_of: SpansOf) -> None:
    attributes = [
        {"key": "text", "value": {"stringValue": "a"}},
        {"key": "yes", "value": {"boolValue": True}},
        {"key": "big", "value": {"intValue": "9007199254740993"}},
        {"key": "small", "value": {"intValue": 3}},
        {"key": "half", "value": {"doubleValue": 0.5}},
        {"key": "list", "value": {"arrayValue": {"values": [{"intValue": "1"}, {"intValue": 2}]}}},
        {"key": "map", "value": {"kvlistValue": {"values": []}}},
    ]
    link = {"traceId": hexadecimal(0xAB, 32), "spanId": hexadecimal(0xCD, 16)}
    event = {"name": "moment", "timeUnixNano": str(START_NS + 2)}
    span = json_span(
        0x51, 0x52, attributes=attributes, links=[link], events=[event], parentSpanId="ff" * 8,
        status={"code": 2, "message": "quotes the input"}, flags=257, unknownField=1,
    )  # fmt: skip
    answer = http.post(PATH, json=json_request(span))
    assert (answer.status_code, answer.json()) == (200, {})
    (found,) = spans_of(0x51)
    assert (found.span_id, found.parent_span_id) == (hexadecimal(0x52, 16), "ff" * 8)
    assert (found.kind, found.status, found.service, found.scope) == ("client", "error", "agent", "lib")  # fmt: skip
    assert (found.start_ns, found.duration_ns) == (START_NS, 5)
    assert dict(found.attributes) == {
        "text": "a",
        "yes": True,
        "big": 9007199254740993,
        "small": 3,
        "half": 0.5,
        "list": (1, 2),
    }
    assert (found.events[0].name, found.events[0].at_ns) == ("moment", START_NS + 2)
    assert (found.links[0].trace_id, found.links[0].span_id) == (link["traceId"], link["spanId"])


def test_protobuf_is_taken_gzipped_and_answered_in_kind(
    http: httpx.Client, spans_of: SpansOf
) -> None:
    headers = PROTOBUF | {"Content-Encoding": "gzip"}
    answer = http.post(PATH, content=gzip.compress(protobuf_request(3, 0x61)), headers=headers)
    assert answer.headers["Content-Type"] == PROTOBUF["Content-Type"]
    response = ExportTraceServiceResponse.FromString(answer.content)
    assert not response.HasField("partial_success")
    assert len(spans_of(0x61)) == 3


@pytest.mark.parametrize(
    ("trace", "pack", "encoding"),
    [
        (0x62, gzip.compress, "gzip"),
        # What is compressed piece by piece is one body all the same (RFC 1952, 2.2).
        (0x63, lambda body: gzip.compress(body[:99]) + gzip.compress(body[99:]), "GZIP"),
    ],
)
def test_json_is_taken_gzipped_and_answered_in_kind(
    http: httpx.Client,
    spans_of: SpansOf,
    trace: int,
    pack: Callable[[bytes], bytes],
    encoding: str,
) -> None:
    body = json.dumps(json_request(*(json_span(trace, number) for number in (1, 2, 3)))).encode()
    answer = http.post(PATH, content=pack(body), headers=JSON | {"Content-Encoding": encoding})
    assert (answer.status_code, answer.json()) == (200, {})
    assert answer.headers["Content-Type"] == "application/json"
    assert [span.span_id for span in spans_of(trace)] == [hexadecimal(n, 16) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("trace", "wrong"),
    [
        (0x71, {"traceId": "0" * 32}),
        (0x72, {"traceId": "12"}),
        (0x73, {"spanId": "xyz"}),
        (0x74, {"spanId": ""}),
        (0x75, {"startTimeUnixNano": "0"}),
        (0x76, {"endTimeUnixNano": str(START_NS - 1)}),
        (0x77, {"endTimeUnixNano": str(2**64 - 1)}),
    ],
)
def test_a_span_that_is_none_is_refused_and_the_others_are_spans_of(
    http: httpx.Client, spans_of: SpansOf, trace: int, wrong: dict[str, str]
) -> None:
    answer = http.post(PATH, json=json_request(json_span(trace, 1), json_span(trace, 2, **wrong)))
    success = answer.json()["partialSuccess"]
    assert (answer.status_code, success["rejectedSpans"]) == (200, "1")
    assert "valid ids or times" in success["errorMessage"]
    assert [span.span_id for span in spans_of(trace)] == [hexadecimal(1, 16)]


def test_more_spans_than_a_request_may_bring_are_counted(http: httpx.Client) -> None:
    answer = http.post(PATH, content=protobuf_request(10_003, 0x81), headers=PROTOBUF)
    success = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert success.rejected_spans == 3
    assert "smaller batches" in success.error_message


def test_while_our_own_spans_wait_others_are_asked_to_come_back(
    http: httpx.Client, kept: TraceStore
) -> None:
    is_held, is_free = threading.Event(), threading.Event()

    def never_stored() -> SpanRecord:
        is_held.set()
        is_free.wait(30)
        raise ValueError("no span after all")

    kept.put(never_stored)
    assert is_held.wait(30), "the store takes no others now"
    try:
        while kept.has_room_for_others:
            kept.put(never_stored)
        refused = http.post(PATH, json=json_request(json_span(trace=77)))
    finally:
        is_free.set()
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    wait_until(lambda: kept.has_room_for_others)
    assert http.post(PATH, json=json_request(json_span(trace=77))).status_code == 200


def test_more_attributes_than_a_span_may_have_are_cut(
    http: httpx.Client, spans_of: SpansOf
) -> None:
    body = protobuf_request(1, 0x82, **{f"name_{number}": "x" * 5000 for number in range(300)})
    http.post(PATH, content=body, headers=PROTOBUF)
    (span,) = spans_of(0x82)
    assert len(span.attributes) == 128
    assert len(str(span.attributes["name_1"])) < 1100


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"\xff\xff", PROTOBUF, 400, "Protobuf"),
        (b"[]", JSON, 400, "JSON"),
        (b'{"resourceSpans": 7}', JSON, 400, "JSON"),
        (b"[" * 100_000, JSON, 400, "JSON"),
        (b'{"\\ud800": 7}', JSON, 400, "JSON"),
        (
            b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"kind": Infinity}]}]}]}',
            JSON,
            400,
            "JSON",
        ),
        (b"plain", PROTOBUF | {"Content-Encoding": "gzip"}, 400, "not gzip"),
        (
            gzip.compress(b"x" * 99, mtime=0)[:20],
            PROTOBUF | {"Content-Encoding": "gzip"},
            400,
            "too early",
        ),
        (
            gzip.compress(bytes(50 << 20), mtime=0),
            PROTOBUF | {"Content-Encoding": "gzip"},
            413,
            "unpacked",
        ),
        (
            gzip.compress(b"[" * (50 << 20), mtime=0),
            JSON | {"Content-Encoding": "gzip"},
            413,
            "unpacked",
        ),
        # Each member is small, and all together are not.
        (
            gzip.compress(bytes(9 << 20), mtime=0) * 2,
            PROTOBUF | {"Content-Encoding": "gzip"},
            413,
            "unpacked",
        ),
        (
            gzip.compress(b"", mtime=0) + b"and more",
            PROTOBUF | {"Content-Encoding": "gzip"},
            400,
            "not gzip",
        ),
        (
            gzip.compress(b"", mtime=0) * 101,
            PROTOBUF | {"Content-Encoding": "gzip"},
            400,
            "more than 100 parts",
        ),
        (bytes(17 << 20), PROTOBUF, 413, "larger than"),
        (b"", {"Content-Type": "text/plain"}, 415, "text/plain"),
        (b"", PROTOBUF | {"Content-Encoding": "br"}, 415, "br"),
    ],
)
def test_what_can_not_be_read_is_refused_in_otlps_own_form(
    http: httpx.Client, body: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    answer = http.post(PATH, content=body, headers=headers)
    assert answer.status_code == status
    if headers["Content-Type"] == "application/json":
        assert said in answer.json()["message"]
    else:
        assert said in Status.FromString(answer.content).message


def test_secrets_and_content_of_others_are_not_spans_of(
    http: httpx.Client, kept: TraceStore, spans_of: SpansOf
) -> None:
    secret = "marked-secret"
    texts = {
        "authorization": secret,
        "url.full": f"https://me:{secret}@host/path?key={secret}",
        "http.request.header.cookie": secret,
        "note": f"Bearer {secret}",
        "request_data": secret,
        "gen_ai.input.messages": secret,
        "gen_ai.prompt.0.content": secret,
        "llm.input_messages.0.message.content": secret,
        "input.value": secret,
    }
    pairs = [{"key": key, "value": {"stringValue": text}} for key, text in texts.items()]
    said = [{"key": "exception.message", "value": {"stringValue": secret}}]
    span = json_span(
        0x91,
        attributes=pairs,
        events=[{"name": "exception", "timeUnixNano": "1", "attributes": said + pairs}],
        links=[{"traceId": "ab" * 16, "spanId": "cd" * 8, "attributes": pairs}],
        status={"code": 2, "message": secret},
        name=f"GET /?token={secret}",
        traceState=f"a={secret}",
    )
    http.post(PATH, json=json_request(span))
    (found,) = spans_of(0x91)
    assert "url.full" in found.attributes
    assert secret not in repr(found)
    for part in kept.path.parent.glob(f"{kept.path.name}*"):
        assert secret.encode() not in part.read_bytes()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"x-api-key": "wrong"}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic right-key"}, 401),
        ({"Authorization": "Bearer right-key"}, 200),
        ({"x-api-key": "right-key"}, 200),
    ],
)
def test_a_key_is_asked_for_where_one_is_set(
    locked: RunningServer, headers: dict[str, str], status: int
) -> None:
    with httpx.Client(base_url=locked.url, transport=PlainTransport()) as client:
        answer = client.post(PATH, json=json_request(json_span()), headers=headers)
    assert answer.status_code == status


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """An inference server by itself that wants a key."""
    folder = tmp_path_factory.mktemp("locked")
    with running(create_server(settings_for(folder, model_dir, otlp_key="right-key"))) as server:
        yield server


@pytest.mark.parametrize(
    ("host", "status"),
    [("192.0.2.7", 403), ("127.0.0.9", 200), ("::1", 200), ("::ffff:127.0.0.1", 200), ("x", 403)],
)
async def test_without_a_key_only_this_machine_may_send(
    tmp_path: Path, model_dir: Path, host: str, status: int
) -> None:
    app = create_app(settings_for(tmp_path, model_dir))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=(host, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answer = await client.post(PATH, json=json_request(json_span()))
    assert answer.status_code == status
    if status == 403:
        assert "MLX_SERVER_OTLP_KEY" in answer.json()["message"]


def test_neither_sending_nor_looking_makes_a_trace(
    http: httpx.Client, ask: Callable[..., str]
) -> None:
    for _ in range(3):
        assert "X-Trace-ID" not in http.get("/api/traces").headers
        assert "X-Trace-ID" not in http.post(PATH, json=json_request(json_span(0xA1))).headers
    ask()
    lines = http.get("/api/traces").json()["traces"]
    assert {line["endpoint"] for line in lines} <= {None, "/v1/completions"}


EXPORTER = """
import sys
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider(resource=Resource.create({"service.name": "exporting-agent"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(sys.argv[1], compression=Compression.Gzip)))
tracer = provider.get_tracer("agent")
with tracer.start_as_current_span("outer", attributes={"steps": 2}) as outer:
    for step in range(2):
        with tracer.start_as_current_span("inner", attributes={"step": step}):
            pass
provider.shutdown()
print(f"{outer.get_span_context().trace_id:032x}")
"""

AGENT = """
import sys
import logfire
from openai import OpenAI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import BatchSpanProcessor

url = sys.argv[1]
logfire.configure(
    send_to_logfire=False, console=False, service_name="instrumented-agent",
    additional_span_processors=[BatchSpanProcessor(OTLPSpanExporter(f"{url}/otlp/v1/traces"))],
)
logfire.instrument_openai(suppress_other_instrumentation=False)
logfire.instrument_httpx()
client = OpenAI(base_url=f"{url}/v1", api_key="none")
with logfire.span("the agent's task") as task:
    client.chat.completions.create(
        model="test/tiny", messages=[{"role": "user", "content": "marked-question"}], max_tokens=4
    )
logfire.shutdown()
print(f"{task.get_span_context().trace_id:032x}")
"""


def in_another_process(code: str, *arguments: str) -> str:
    """Run it without anything of ours and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=kept,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def whole_trace(store: TraceStore, trace_id: str, count: int) -> Trace:
    def has_all() -> bool:
        found = store.get_trace(trace_id)
        return found is not None and len(found.spans) >= count

    wait_until(has_all)
    found = store.get_trace(trace_id)
    assert found is not None
    return found


def test_the_opentelemetry_sdk_exports_to_us(manager: RunningServer, kept: TraceStore) -> None:
    trace_id = in_another_process(EXPORTER, manager.url + PATH)
    trace = whole_trace(kept, trace_id, 3)
    assert (trace.summary.name, trace.summary.service) == ("outer", "exporting-agent")
    outer, *inner = trace.spans
    assert [span.parent_span_id for span in inner] == [outer.span_id] * 2
    assert [span.attributes["step"] for span in inner] == [0, 1]


def test_an_instrumented_agents_spans_and_ours_are_one_trace(
    manager: RunningServer, kept: TraceStore
) -> None:
    trace_id = in_another_process(AGENT, manager.url)
    # The task, the SDK's call, its HTTP request; the server's, the chat and four phases.
    trace = whole_trace(kept, trace_id, 9)
    by_service = {span.service for span in trace.spans}
    assert by_service == {"instrumented-agent", "mlx-test"}
    summary = trace.summary
    assert (summary.name, summary.service) == ("the agent's task", "instrumented-agent")
    assert (summary.model, summary.output_tokens, summary.http_status) == ("test/tiny", 4, 200)
    ids = {span.span_id for span in trace.spans}
    assert [span.name for span in trace.spans if span.parent_span_id not in ids] == [summary.name]
    assert "marked-question" not in repr(trace)
    counted = kept.stats(summary.started_ns, summary.started_ns + summary.duration_ns)
    assert sum(model.requests for model in counted.models) == 1
