"""The server's own keys, of whatever shape, sent everywhere that a client can write, and a search of every sink."""

from __future__ import annotations

import base64
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, quote_plus

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from tests.conftest import ENDLESS_TOKENS, TINY
from tests.observability.conftest import TOKEN
from tests.observability.watched import (
    ENDLESS_PATH,
    LOG_FORMATS,
    Application,
    routes,
    watched,
)

# One of each setting that holds a secret, none of a shape that a pattern knows. The agent's has to be quoted in paths
# and in JSON, the metrics' could be the id of a trace, the collector's that of a span.
LAPTOP = "Winter.Garden_47-blue"
AGENT = 'p/w+d:41%20&"ö'
METRICS = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
ADMIN = "administrator(7)!"
OTLP = "spans:of-others~"
COLLECTOR = "c0ffee00c0ffee11"
# Too short to be looked for within words.
SHORT = "q7~Zk.4"
KEYS = [LAPTOP, AGENT, METRICS, ADMIN, OTLP, COLLECTOR, TOKEN, SHORT]
# What fits into a header as it is.
PLAIN = [key for key in KEYS if key != AGENT]
ALL = " ".join(KEYS)
# A client's own: in a query and in place of a key, and what it says.
OF_CLIENT = "zq4711-of-a-client"
SAID = "zq4712-said-by-a-client"
MAX_BODY_BYTES = 16_384
VARIABLES = {
    "MLX_SERVER_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
    "MLX_SERVER_API_KEYS": f"laptop={LAPTOP},agent={AGENT}",
    "MLX_SERVER_METRICS": "true",
    "MLX_SERVER_METRICS_KEY": METRICS,
    "MLX_SERVER_ADMIN_KEY": ADMIN,
    "MLX_SERVER_OTLP_KEY": OTLP,
    "OTEL_EXPORTER_OTLP_HEADERS": f"x-team={COLLECTOR},x-tenant={SHORT}",
    # One place and a short time: some find it taken, and some run out of time.
    "MLX_SERVER_MAX_BATCH": "1",
    "MLX_SERVER_MAX_WAITING": "0",
    "MLX_SERVER_CHAT_TIMEOUT_S": "0.5",
}
# With one of them what is said is recorded, too.
CAPTURED = {"mlx_manager.main": "on", "mlx_manager.mlx_server.main": "off"}


def spellings(key: str) -> Iterator[bytes]:
    for text in (
        *(key, quote(key), quote(key, safe=""), quote_plus(key)),
        *(json.dumps(key)[1:-1], json.dumps(key, ensure_ascii=False)[1:-1]),
    ):
        yield text.encode()
        # As it stands in JSON that is a string in JSON.
        yield json.dumps(text)[1:-1].encode()
    if re.fullmatch("[0-9a-f]+", key):
        yield bytes.fromhex(key)


def found_in(sink: bytes) -> list[str]:
    return [key for key in KEYS if any(spelling in sink for spelling in spellings(key))]


def chat(**changes: Any) -> dict[str, Any]:
    """Every field that takes words of the caller's own, with all keys in it."""
    function = {"name": LAPTOP.replace(".", "_"), "description": ALL}
    return {
        "model": TINY,
        "messages": [{"role": "user", "content": f"{ALL} {SAID} {'x' * 200}"}],
        "max_tokens": 2,
        "user": LAPTOP,
        "metadata": {"key": ALL},
        "safety_identifier": ADMIN,
        "stop": KEYS[:4],
        "tools": [{"type": "function", "function": function}],
        **changes,
    }


def bodies() -> Iterator[dict[str, Any]]:
    long = "m" * 240
    yield chat()
    yield chat(stream=True)
    yield from (chat(model=key) for key in KEYS)
    # A name is cut in the audit log, and would be in the middle of the key.
    yield chat(model=f"{long}{LAPTOP}")
    yield chat(unknown=ALL)
    yield chat(temperature=AGENT)
    yield chat(filler="x" * MAX_BODY_BYTES)
    yield {"model": TINY, "prompt": ALL, "max_tokens": 2, "user": OTLP, "stop": KEYS[:4]}
    yield {"model": TINY, "input": ALL, "instructions": ALL, "store": False, "user": OTLP}
    yield {"model": AGENT, "input": ALL, "store": False, "previous_response_id": LAPTOP}
    yield chat(metadata={"user_id": AGENT}, stop_sequences=KEYS, system=ALL)


class Caller:
    """Sends each request with a good key and with others where they don't belong."""

    def __init__(self, application: Application) -> None:
        self.statuses = set[int]()
        self._keys = cycle(PLAIN)
        self._http = httpx.Client(base_url=application.url, timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(self, method: str, path: str, content: bytes = b"", **headers: str) -> int:
        # From elsewhere, as a proxy says: pages and administration are for this machine.
        if path.startswith("/v1/"):
            headers["X_Forwarded_For"] = next(self._keys)
        sent = self._headers() | {name.replace("_", "-"): value for name, value in headers.items()}
        sent_bytes = {name.encode(): value.encode() for name, value in sent.items()}
        query = {"key": AGENT, "q": f"{ALL} {OF_CLIENT}"}
        with self._http.stream(
            method, path, params=query, headers=sent_bytes, content=content
        ) as answer:
            self.statuses.add(answer.status_code)
            if path == ENDLESS_PATH:
                next(answer.iter_lines())
            else:
                answer.read()
        return answer.status_code

    def _headers(self) -> dict[str, str]:
        key = next(self._keys)
        return {
            "Authorization": f"Bearer {LAPTOP}",
            "Content-Type": "application/json",
            "X-Request-ID": key,
            "X-Session-ID": next(self._keys),
            "baggage": f"session.id={next(self._keys)}",
            "traceparent": f"00-{METRICS}-{COLLECTOR}-01",
            "tracestate": f"vendor={next(self._keys)}",
            "User-Agent": ALL,
            "Cookie": f"it={LAPTOP}",
        }


def paths(template: str) -> Iterator[str]:
    """A route's path with keys for its parameters: each key where there is one."""
    if "{" not in template:
        yield template
        return
    for key in KEYS:
        yield re.sub(r"{[a-z_]+(:path)?}", lambda _: quote(key, safe=""), template)  # noqa: B023


def send_everything(caller: Caller, main: str, folder: Path) -> None:
    of_models = {"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"}
    for method, template in routes(main, folder):
        for path in paths(template):
            whole = path in of_models and method == "POST"
            for body in bodies() if whole else [chat(model=AGENT)] if method == "POST" else [None]:
                caller.send(method, path, json.dumps(body).encode() if body else b"")
    for key in KEYS:
        caller.send("GET", f"/nothing/{quote(key)}/{quote(key, safe='')}")
        caller.send("GET", f"/v1/models/{quote(key)}")
    content = json.dumps(chat()).encode()
    for key in [*PLAIN, OF_CLIENT]:
        caller.send("POST", "/v1/chat/completions", content, Authorization=f"Bearer {key}")
        caller.send("POST", "/v1/messages", content, Authorization="", x_api_key=key)
        caller.send("GET", "/metrics", Authorization=f"Bearer {key}")
        caller.send("POST", "/broken", content, X_Session_ID=key)


def overload(application: Application, caller: Caller) -> None:
    """One request runs into its limit while others find its place taken."""
    endless = chat(max_tokens=ENDLESS_TOKENS, temperature=0, stop=KEYS[:2], ignore_eos=True)
    content = json.dumps(endless).encode()
    for _ in range(20):
        slow = threading.Thread(target=caller.send, args=("POST", "/v1/chat/completions", content))
        slow.start()
        time.sleep(0.1)
        with Caller(application) as own:
            own.send("POST", "/v1/chat/completions", content)
            caller.statuses |= own.statuses
        slow.join()
        if {503, 504} <= caller.statuses:
            return


def texts() -> list[KeyValue]:
    values = [(f"of.{key}", "a") for key in KEYS] + [("plain", ALL)]
    values += [("long", "x" * 990 + LAPTOP), ("gen_ai.request.model", AGENT), (LAPTOP, LAPTOP)]
    return [KeyValue(key=name, value=AnyValue(string_value=text)) for name, text in values]


def spans_of_others(trace_id: bytes) -> ExportTraceServiceRequest:
    """Well-formed, with keys in every text of it."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.extend(
        [KeyValue(key="service.name", value=AnyValue(string_value=f"of {LAPTOP}")), *texts()]
    )
    scope = resource.scope_spans.add()
    scope.scope.name, scope.scope.version = f"scope {ALL}", LAPTOP
    span = scope.spans.add(
        trace_id=trace_id,
        span_id=b"12345678",
        name=f"named {ALL}",
        trace_state=f"vendor={LAPTOP}",
        start_time_unix_nano=1_700_000_000_000_000_000,
        end_time_unix_nano=1_700_000_001_000_000_000,
        attributes=texts(),
    )
    span.status.message = ALL
    span.events.add(
        name=f"event {ALL}", time_unix_nano=1_700_000_000_500_000_000
    ).attributes.extend(texts())
    span.links.add(trace_id=b"a" * 16, span_id=bytes.fromhex(COLLECTOR), attributes=texts())
    span.links.add(trace_id=bytes.fromhex(METRICS), span_id=b"a" * 8)
    return request


def send_spans(caller: Caller) -> None:
    for trace_id in (b"an ordinary one.", bytes.fromhex(METRICS)):
        content = spans_of_others(trace_id).SerializeToString()
        kind = "application/x-protobuf"
        assert caller.send(
            "POST", "/otlp/v1/traces", content, Content_Type=kind, Authorization=f"Bearer {OTLP}"
        ) == 200  # fmt: skip
    document = {
        "resourceSpans": [
            {
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": "0" * 31 + "7",
                                "spanId": "0" * 15 + "7",
                                "name": ALL,
                                "startTimeUnixNano": "1700000000000000000",
                                "endTimeUnixNano": "1700000001000000000",
                                "attributes": [{"key": ALL, "value": {"stringValue": ALL}}],
                            }
                        ]
                    }
                ]
            }
        ]
    }
    assert caller.send("POST", "/otlp/v1/traces", json.dumps(document).encode(), x_api_key=OTLP,
                       Authorization="") == 200  # fmt: skip


@pytest.mark.parametrize("main", LOG_FORMATS)
def test_no_configured_key_reaches_any_sink(main: str, tmp_path: Path, model_dir: Path) -> None:
    variables = VARIABLES | {"MLX_SERVER_CAPTURE_CONTENT": CAPTURED[main]}
    with (
        watched(main, tmp_path, model_dir, **variables) as application,
        Caller(application) as caller,
    ):
        warm_up = {"model": TINY, "prompt": "x", "max_tokens": 1}
        assert caller.send("POST", "/v1/completions", json.dumps(warm_up).encode()) == 200
        overload(application, caller)
        send_spans(caller)
        send_everything(caller, main, tmp_path)
        metrics = httpx.get(f"{application.url}/metrics").content
        application.process.send_signal(signal.SIGTERM)
        application.process.wait(60)
        sinks = application.sinks() | {"metrics": metrics}

    assert caller.statuses >= {200, 400, 401, 404, 405, 413, 422, 500, 503, 504}
    assert {name: found_in(sink) for name, sink in sinks.items()} == {name: [] for name in sinks}
    private = [OF_CLIENT] if CAPTURED[main] == "on" else [OF_CLIENT, SAID]
    assert [
        (name, one) for name, sink in sinks.items() for one in private if one.encode() in sink
    ] == []
    # And what stood beside them is there.
    assert b"[redacted]" in sinks["log and console"]
    assert b"[redacted]" in sinks["OTLP and Logfire"]
    assert b"[redacted]" in sinks["database"]
    assert b"[redacted]" in sinks["files"]
    assert b"gen_ai_server_request_duration_seconds" in sinks["metrics"]


def test_the_search_would_find_a_key_in_each_spelling() -> None:
    assert found_in(base64.b64encode(b"nothing")) == []
    assert found_in(f"/v1/{quote(AGENT)}".encode()) == [AGENT]
    assert found_in(json.dumps({"a": json.dumps(AGENT)}).encode()) == [AGENT]
    assert found_in(bytes.fromhex(METRICS)) == [METRICS]
