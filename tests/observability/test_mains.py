"""What each `main` module sets up by being imported, in a process of its own."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.observability.conftest import Python

ANSWER = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-real",
    "choices": [],
    "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
}

# Calls the provider once through httpx and once through OpenAI's SDK, and prints what spans that left. The
# console's lines come from a thread of their own: they are waited for, so that none stands within another line.
CALLS = """
import json
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from mlx_manager.observability.setup import flush, span_sink
import httpx, openai

spans = InMemorySpanExporter()
with span_sink(SimpleSpanProcessor(spans)):
    httpx.get("{provider}/models")
    openai.OpenAI(base_url="{provider}", api_key="k").chat.completions.create(
        model="gpt-real", messages=[{{"role": "user", "content": "Hello"}}])
assert flush(30)
for span in spans.get_finished_spans():
    told = [span.name, span.kind.name, dict(span.attributes or {{}}), dict(span.resource.attributes)]
    print("SPAN", json.dumps(told))
"""
# Both applications on ports of their own, a chat to each, and what spans that left.
TOGETHER = """
import json, socket, threading, time
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from mlx_manager.observability.setup import span_sink
import httpx, logfire, uvicorn

spans = InMemorySpanExporter()
with span_sink(SimpleSpanProcessor(spans)):
    for app in (first, second):
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        port = listener.getsockname()[1]
        with logfire.suppress_instrumentation():
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", timeout=50, json={
                "model": "mlx-manager/starter", "max_tokens": 3, "ignore_eos": True,
                "messages": [{"role": "user", "content": "Hello"}]})
        assert answer.status_code == 200, answer.text
        server.should_exit = True
        thread.join()
for span in spans.get_finished_spans():
    resource = span.resource.attributes
    print(json.dumps([span.name, span.context.trace_id, resource["service.name"]]))
"""
MANAGER, SERVER = "mlx_manager.main", "mlx_manager.mlx_server.main"


class Provider(BaseHTTPRequestHandler):
    """Answers every request as a chat."""

    def do_GET(self) -> None:
        body = json.dumps(ANSWER).encode()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.mark.parametrize(
    ("main", "variables"),
    [
        (
            MANAGER,
            {
                "MLX_MANAGER_ENVIRONMENT": "production",
                "MLX_SERVER_ENVIRONMENT": "development",
                "MLX_MANAGER_CONSOLE": "true",
            },
        ),
        (MANAGER, {"MLX_SERVER_ENVIRONMENT": "production", "MLX_SERVER_CONSOLE": "true"}),
        (SERVER, {"MLX_SERVER_ENVIRONMENT": "production", "MLX_SERVER_CONSOLE": "true"}),
    ],
)
def test_calls_leave_spans_that_know_the_environment_and_show_on_the_console(
    python: Python, provider: str, main: str, variables: dict[str, str]
) -> None:
    done = python(f"from {main} import app\n" + CALLS.format(provider=provider), **variables)
    lines = done.stdout.splitlines()

    spans = [json.loads(line.removeprefix("SPAN ")) for line in lines if line.startswith("SPAN")]
    assert done.stderr == ""
    assert [(name, kind) for name, kind, _, _ in spans] == [
        ("GET", "CLIENT"),
        ("POST", "CLIENT"),
        ("chat gpt-real", "CLIENT"),
    ]
    assert spans[0][2]["url.full"] == f"{provider}/models"
    assert spans[2][2]["gen_ai.usage.input_tokens"] == 11
    assert {resource["deployment.environment.name"] for *_, resource in spans} == {"production"}
    shown = [line for line in lines if not line.startswith("SPAN")]
    assert len(shown) == 3
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} ", line) for line in shown)


@pytest.mark.parametrize("main", [MANAGER, SERVER])
def test_development_is_the_default_and_the_console_is_quiet(python: Python, main: str) -> None:
    done = python(f"""
from {main} import app
import logfire
from opentelemetry import trace
with logfire.span('some work'):
    pass
print(trace.get_tracer_provider().resource.attributes["deployment.environment.name"])
""")

    assert (done.stdout, done.stderr) == ("development\n", "")


@pytest.mark.parametrize(
    ("first", "second", "service"),
    [(MANAGER, SERVER, "mlx-manager"), (SERVER, MANAGER, "mlx-server")],
)
def test_two_applications_of_one_process_are_configured_once_and_leave_each_span_once(
    python: Python, first: str, second: str, service: str
) -> None:
    done = python(
        f"from {first} import app as first\nfrom {second} import app as second\n{TOGETHER}"
    )

    assert (done.returncode, done.stderr) == (0, "")
    spans = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name for _, _, name in spans} == {service}
    names = Counter(name for name, _, _ in spans)
    once_for_each = ("POST /v1/chat/completions", "chat mlx-manager/starter", "prefill", "decode")
    assert [names[name] for name in once_for_each] == [2, 2, 2, 2]
    by_trace = Counter(trace for name, trace, _ in spans if name in once_for_each)
    assert sorted(by_trace.values()) == [4, 4]


@pytest.mark.parametrize(
    ("main", "application"),
    [
        ("mlx_manager.main", "mlx_manager.app"),
        ("mlx_manager.mlx_server.main", "mlx_manager.mlx_server.app"),
    ],
)
def test_telemetry_is_configured_before_the_application_is_so_much_as_imported(
    python: Python, main: str, application: str
) -> None:
    done = python(f"""
import sys
from opentelemetry import trace
class Watch:
    def find_spec(self, name, path, target=None):
        if name == {application!r}:
            print(trace.get_tracer("test").start_span("test").is_recording())
sys.meta_path.insert(0, Watch())
import {main}
""")
    assert done.stdout.split() == ["True"], done.stderr
