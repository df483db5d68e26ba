"""What must not leave: marked secrets in every place that a request, a reply or an error can hold one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus

import httpx
import logfire
import pytest
from fastapi import FastAPI, Request
from opentelemetry import _logs, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, get_current_span

from mlx_manager.observability.logfire_config import instrument_fastapi
from mlx_manager.observability.redaction import (
    CUT,
    TEXT_LENGTH,
    LogRedactor,
    Redactor,
    clean_any,
    clean_text,
    clean_value,
)
from tests.observability.conftest import Python
from tests.support.running import RunningServer, eventually, running
from tests.support.spans import Spans

SECRET = "marked-secret-4711"
LONE_SURROGATE = "\ud83d"
# Once 20,000 of the first held the event loop up for eleven seconds.
HOSTILE = (
    *("a?", "a.", "a.=", "a?b=", "://a", "a://", "://a@", "sk-", "sk-a.", "key", "key=&", "token-"),
    *("bearer ", "bearer\t\t", "basic", "=", "?", "@", "#", " ", "a", CUT, "://" + CUT, "a?" + CUT),
)


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


@pytest.mark.parametrize("pattern", HOSTILE)
def test_no_text_takes_long_to_clean(pattern: str) -> None:
    text = pattern * (1_000_000 // len(pattern))

    assert seconds_to_clean(lambda: clean_value("gen_ai.request.model", text)) < 1
    assert seconds_to_clean(lambda: clean_value("url.full", f"http://{text}")) < 1
    assert seconds_to_clean(lambda: clean_value("exception.stacktrace", text)) < 1
    assert seconds_to_clean(lambda: clean_value("gen_ai.request.stop_sequences", [text] * 4)) < 1
    assert seconds_to_clean(lambda: clean_value(text, "value")) < 1
    assert seconds_to_clean(lambda: clean_any("", {"nested": [text]})) < 1


@pytest.mark.parametrize("pattern", HOSTILE)
@pytest.mark.parametrize("end", ["", "=", "@", " "])
def test_the_search_itself_takes_linear_time(pattern: str, end: str) -> None:
    """Also without the cut: a quadratic one needs minutes for this."""
    text = pattern * (200_000 // len(pattern)) + end

    assert seconds_to_clean(lambda: clean_text(text, len(text))) < 5


def seconds_to_clean(clean: Callable[[], object]) -> float:
    start = time.process_time()
    clean()
    return time.process_time() - start


def test_a_long_text_is_cut_and_says_so() -> None:
    cut = clean_text("a" * 1_000_000)

    assert cut == "a" * TEXT_LENGTH + CUT
    assert clean_text(cut) == cut
    assert clean_text("a" * TEXT_LENGTH) == "a" * TEXT_LENGTH


@pytest.mark.parametrize(
    "secret",
    [
        f"http://user:{SECRET}@host/path",
        f"http://{SECRET}:x@host/path",
        f"/path?{SECRET}=1",
        f"/path?a=1&b={SECRET}",
        f"api_key={SECRET}",
        f"Bearer {SECRET}",
        f"Basic {SECRET}",
        f"sk-{SECRET}",
    ],
)
@pytest.mark.parametrize("name", ["gen_ai.request.model", "url.full", "url.path"])
def test_the_cut_lets_no_part_of_a_secret_through(name: str, secret: str) -> None:
    for visible in range(len(secret) + 1):
        before = "a" * (TEXT_LENGTH - visible - 1) + " "
        text = before + secret + "b" * TEXT_LENGTH
        cleaned = clean_value(name, text)
        assert isinstance(cleaned, str)
        assert SECRET[:3] not in cleaned


def test_the_innermost_frames_of_a_deep_failure_are_kept(spans: Spans) -> None:
    def deeper(depth: int) -> None:
        if depth == 0:
            raise ValueError(SECRET)
        deeper(depth - 1)

    with pytest.raises(ValueError, match=SECRET), logfire.span("outer"):
        deeper(300)

    (event,) = spans.one("outer").events
    frames = str((event.attributes or {})["exception.stacktrace"])
    assert len(frames) <= 4000
    assert frames.startswith(CUT)
    assert frames.endswith("deeper")


@pytest.mark.parametrize(
    "url", [f"http://user:{'p' * 2000}@host/", "http://[broken/", "http://h\u2100/", "http://[x]/"]
)
def test_no_url_keeps_a_request_from_being_sent(spans: Spans, url: str) -> None:
    """Its span starts on the way, and an exception there would be the request's."""
    attributes = {"http.request.method": "GET", "url.full": url}
    with trace.get_tracer("test").start_as_current_span("GET", attributes=attributes):
        pass

    caption = (spans.one("GET").attributes or {})["logfire.msg"]
    assert str(caption).startswith("GET http://")
    assert "ppp" not in spans.text()


def test_lists_and_names_are_bounded_too() -> None:
    assert len(clean_value("list", ["a"] * 1000)) == 32  # type: ignore[arg-type]
    assert len(clean_value("list", [1] * 1000)) == 512  # type: ignore[arg-type]
    assert len(clean_value("list", [1.5] * 256)) == 256  # type: ignore[arg-type]
    assert clean_value("list", [*[1] * 40, "sk-secret-secret"]) == ("1",) * 32  # type: ignore[arg-type]
    assert clean_value("n" * 1000, "value") is None
    assert clean_value("number", 2**63 - 1) == 2**63 - 1
    assert clean_value("number", HTTPStatus.NOT_FOUND) == 404
    assert clean_value("number", -(2**63)) == -(2**63)
    assert clean_value("number", 2**63) == CUT


@pytest.mark.parametrize("end", ["", "x"])
def test_half_a_surrogate_pair_spoils_no_batch(
    spans: Spans, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    """Its span arrives with a mark in its place, next to the others; UTF-8 knows no half pairs."""
    broken = LONE_SURROGATE + end
    with logfire.span("innocent"):
        pass
    tracer = trace.get_tracer("test")
    with tracer.start_as_current_span(f"chat {broken}", attributes={"first": broken}) as span:
        span.set_attributes({"model": broken, "stop": [broken, "b"], f"name {broken}": "value"})
        span.set_attribute("number", 2**70)
        span.add_event(f"event {broken}", {"text": broken})
        span.update_name(f"renamed {broken}")

    batch = encode_spans(spans.all)

    ((scope, other),) = [resource.scope_spans for resource in batch.resource_spans]
    assert [span.name for span in (*scope.spans, *other.spans)] == [
        "innocent",
        f"renamed \ufffd{end}",
    ]
    assert "Failed to encode" not in caplog.text


def test_a_running_span_has_a_clean_name_too() -> None:
    """Sinks that show spans as they start are given the span itself."""
    exporter = InMemorySpanExporter()

    class Starting(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            exporter.export([span])

    provider = TracerProvider()
    provider.add_span_processor(Redactor())
    provider.add_span_processor(Starting())

    provider.get_tracer("test").start_span(
        f"chat {LONE_SURROGATE} sk-{SECRET}", attributes={"model": LONE_SURROGATE}
    )

    (span,) = exporter.get_finished_spans()
    assert span.name == "chat \ufffd sk-[redacted]"
    assert dict(span.attributes or {}) == {"model": "\ufffd"}


def test_both_halves_of_a_surrogate_pair_are_joined() -> None:
    assert clean_text("\ud83d\ude00 \ud83d") == "\U0001f600 \ufffd"


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
                "nested": {"token": SECRET, "list": [f"sk-{SECRET}"]},
                "token": {"nested": SECRET},
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


async def test_a_path_that_met_no_route_is_shown_without_what_could_be_a_key(
    server: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    await untraced.get(f"{server.url}/nothing/{SECRET}-{SECRET}/here")
    await eventually(lambda: bool(spans.of_kind(SpanKind.SERVER)))

    (request,) = spans.of_kind(SpanKind.SERVER)
    assert (request.attributes or {})["url.path"] == "/nothing/…/here"
    assert SECRET not in spans.text()
