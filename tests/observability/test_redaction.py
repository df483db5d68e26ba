"""What must not leave: marked secrets in every place that a request, a reply or an error can hold one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx
import logfire
import pytest
from fastapi import FastAPI, Request
from opentelemetry import _logs
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.trace import SpanKind, get_current_span

from mlx_manager.observability.logfire_config import instrument_fastapi
from mlx_manager.observability.redaction import LogRedactor, clean_text, clean_value
from tests.observability.conftest import Python
from tests.support.running import RunningServer, eventually, running
from tests.support.spans import Spans

SECRET = "marked-secret-4711"


def make_app() -> FastAPI:
    app = FastAPI()

    @app.post("/numbers/{number}")
    async def post_number(number: int, body: dict[str, int]) -> None:
        raise ValueError(f"cannot store {number} {body}")

    @app.get("/calls")
    async def get_call(request: Request) -> None:
        with contextlib.suppress(httpx.ConnectError):
            async with httpx.AsyncClient() as client:
                await client.get(
                    f"http://user:{SECRET}@127.0.0.1:1/path?key={SECRET}#{SECRET}",
                    headers={"Authorization": f"Bearer {SECRET}"},
                )

    @app.get("/fails")
    async def get_failure(request: Request) -> None:
        with logfire.span("reading {url}", url=str(request.url)):
            raise ValueError(f"refused: {request.url}")

    instrument_fastapi(app)
    return app


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(make_app()) as server:
        yield server


@pytest.mark.parametrize(
    ("method", "path", "span_name"),
    [
        ("GET", f"/calls?api_key={SECRET}&to=https://a.example/%3Fq%3D{SECRET}", "GET /calls"),
        ("GET", f"/fails?access_token={SECRET}&q={SECRET}", "GET /fails"),
        ("POST", f"/numbers/{SECRET}", "POST /numbers/{number}"),
        ("POST", f"/numbers/1?sig={SECRET}", "POST /numbers/{number}"),
        ("GET", f"/no-such-path?{SECRET}", "GET"),
    ],
)
async def test_no_secret_of_a_request_reaches_a_sink(
    server: RunningServer,
    untraced: httpx.AsyncClient,
    spans: Spans,
    method: str,
    path: str,
    span_name: str,
) -> None:
    headers = {
        "Authorization": f"Bearer {SECRET}",
        "X-Api-Key": SECRET,
        "Cookie": f"session={SECRET}",
    }
    await untraced.request(method, server.url + path, json={"text": SECRET}, headers=headers)
    await eventually(lambda: any(span.kind is SpanKind.SERVER for span in spans.all))

    assert [span.name for span in spans.of_kind(SpanKind.SERVER)] == [span_name]
    assert SECRET not in spans.text()


def test_an_exception_leaves_its_type_and_its_frames_and_no_word(spans: Spans) -> None:
    pasted = f'Traceback:\n  File "{SECRET}.py", line 1, in {SECRET}\n{SECRET}'
    with pytest.raises(ValueError, match="Traceback"), logfire.span("outer"):
        raise ValueError(pasted)

    span = spans.one("outer")
    (event,) = span.events
    attributes = event.attributes or {}
    assert attributes["exception.type"] == "ValueError"
    assert "test_an_exception_leaves_its_type" in str(attributes["exception.stacktrace"])
    assert SECRET not in span.to_json()


def test_an_exception_event_that_somebody_else_writes_loses_its_text(spans: Spans) -> None:
    with logfire.span("outer"):
        get_current_span().add_event(
            "exception", {"exception.message": SECRET, "exception.stacktrace": SECRET}
        )

    assert SECRET not in spans.text()


def test_captured_headers_cookies_and_content_are_dropped(spans: Spans) -> None:
    with logfire.span("outer") as span:
        for name in (
            "http.request.header.authorization",
            "http.response.header.set-cookie",
            "gen_ai.input.messages",
            "gen_ai.output.messages",
            "url.query",
            "password",
            "openai_api_key",
        ):
            span.set_attribute(name, SECRET)

    assert SECRET not in spans.text()


@pytest.mark.parametrize("name", ["session_id", "auth_provider", "cookie_policy", "mlx.key.id"])
def test_harmless_names_keep_their_value(name: str) -> None:
    assert clean_value(name, "visible") == "visible"


@pytest.mark.parametrize("name", ["gen_ai.usage.input_tokens", "gen_ai.request.max_tokens"])
def test_token_counts_are_no_tokens(name: str) -> None:
    assert clean_value(name, 12) == 12


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("GET https://a.example/p?x=1&y=2 failed", "GET https://a.example/p?[redacted] failed"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
        ("key sk-abcdefgh12345 is wrong", "key sk-[redacted] is wrong"),
        ("postgresql://me:pw@db/x", "postgresql://[redacted]db/x"),
        ("SELECT a FROM b WHERE c = ?", "SELECT a FROM b WHERE c = ?"),
        ("Is temperature=0.7 fine? Yes.", "Is temperature=0.7 fine? Yes."),
    ],
)
def test_free_text_loses_what_looks_like_a_secret_and_nothing_else(text: str, clean: str) -> None:
    assert clean_text(text) == clean


def test_log_records_are_cleaned_too() -> None:
    provider, exporter = LoggerProvider(), InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider.add_log_record_processor(LogRedactor())
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))

    provider.get_logger("test").emit(
        _logs.LogRecord(
            body=f"asked with api_key={SECRET}",
            attributes={
                "exception.message": SECRET,
                "password": SECRET,
                "nested": {"token": SECRET},
            },
        )
    )

    (record,) = exporter.get_finished_logs()
    assert SECRET not in str(record.log_record)


def test_the_console_shows_no_query_while_a_request_runs(python: Python) -> None:
    done = python(f"""
import httpx
from mlx_manager.observability.logfire_config import configure_logfire, instrument_httpx
configure_logfire(console=True)
instrument_httpx()
try:
    httpx.get("http://user:{SECRET}@127.0.0.1:1/path?key={SECRET}")
except httpx.ConnectError:
    pass
""")

    assert "GET 127.0.0.1:1/path" in done.stdout
    assert SECRET not in done.stdout + done.stderr
