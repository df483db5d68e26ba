"""A chat through each whole application, with a real model: one trace from the socket to the engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from mlx_manager import app as manager
from mlx_manager.mlx_server import app as server
from tests.conftest import ENDLESS_TOKENS, TINY
from tests.observability.conftest import ROOT
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans, ids

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SECRET = "marked-secret-4711"


@pytest.fixture(scope="module", params=[server.create_app, manager.create_app])
def application(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> Iterator[RunningServer]:
    settings = settings_for(tmp_path_factory.mktemp("application"), model_dir)
    with running(request.param(settings)) as application:
        yield application


async def test_a_streamed_chat_is_one_trace(
    application: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    answer = await untraced.post(
        f"{application.url}/v1/chat/completions?api_key={SECRET}",
        headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "Authorization": f"Bearer {SECRET}"},
        json={
            "model": TINY,
            "messages": [{"role": "user", "content": SECRET}],
            "max_tokens": 4,
            # By chance its first token would be the last.
            "ignore_eos": True,
            "stream": True,
        },
        timeout=60,
    )
    await spans.wait(f"chat {TINY}")
    await eventually(lambda: len(spans.of_kind(SpanKind.SERVER)) > 0)

    assert answer.headers["X-Trace-ID"] == TRACE
    (request,) = spans.of_kind(SpanKind.SERVER)
    assert request.name == "POST /v1/chat/completions"
    assert ids(request.parent) == (TRACE, PARENT)
    chat = spans.one(f"chat {TINY}")
    assert ids(chat.parent) == ids(request.context)
    assert (chat.attributes or {})["gen_ai.usage.output_tokens"] == 4
    phases = {span.name for span in spans.all if ids(span.parent) == ids(chat.context)}
    assert phases >= {"tokenize", "queue", "prefill", "decode"}
    assert all(lies_within(spans.one(name), chat) for name in ("queue", "prefill", "decode"))
    assert SECRET not in spans.text()
    assert {key for span in spans.all for key in span.attributes or {}} <= documented()


async def test_a_client_that_leaves_is_cancelled_all_the_way_down(
    application: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    body = {
        "model": TINY,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": ENDLESS_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    async with untraced.stream(
        "POST", f"{application.url}/v1/chat/completions", json=body, timeout=60
    ) as answer:
        # The first line comes before the first token.
        lines = answer.aiter_lines()
        for _ in range(10):
            await anext(lines)
    request = await spans.wait("POST /v1/chat/completions")

    for span in (request, await spans.wait(f"chat {TINY}")):
        assert (span.attributes or {})["mlx.cancelled"] is True
        assert span.status.status_code is StatusCode.UNSET
    assert spans.named("decode")


async def test_a_refused_chat_is_one_trace_with_its_code(
    application: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    answer = await untraced.post(
        f"{application.url}/v1/chat/completions",
        json={"model": "no/such", "messages": [{"role": "user", "content": SECRET}]},
    )
    request = await spans.wait("POST /v1/chat/completions")

    assert answer.status_code == 404
    assert ids(request.context)[0] == answer.headers["X-Trace-ID"]
    chat = await spans.wait("chat no/such")
    assert (chat.attributes or {})["error.type"] == "model_not_found"
    assert SECRET not in spans.text()


async def test_health_leaves_no_span(
    application: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    for path in ("/health", "/api/health", "/static/app.css"):
        await untraced.get(application.url + path)
    await untraced.get(f"{application.url}/v1/models")

    request = await spans.wait("GET /v1/models")
    assert spans.of_kind(SpanKind.SERVER) == [request]


async def test_the_audit_row_of_a_chat_is_a_traced_query(
    application: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    body = {"model": TINY, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 2}
    answer = await untraced.post(f"{application.url}/v1/chat/completions", json=body, timeout=60)
    await application.close_books()

    assert answer.status_code == 200
    await eventually(lambda: bool(audit_inserts(spans)))
    assert all((one.attributes or {})["db.system.name"] == "sqlite" for one in audit_inserts(spans))
    assert SECRET not in spans.text()


def audit_inserts(spans: Spans) -> list[ReadableSpan]:
    return [
        span
        for span in spans.of_kind(SpanKind.CLIENT)
        if str((span.attributes or {}).get("db.query.text")).startswith("INSERT INTO audit_log")
    ]


def lies_within(span: ReadableSpan, outer: ReadableSpan) -> bool:
    return (
        (outer.start_time or 0)
        <= (span.start_time or 0)
        <= (span.end_time or 0)
        <= (outer.end_time or 0)
    )


def documented() -> set[str]:
    page = (ROOT / "docs" / "telemetry.md").read_text()
    return set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", page))
