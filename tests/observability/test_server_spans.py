"""Exactly one server span per request, from its arrival to the last byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import StreamingResponse
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import create_engine, text
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_manager.observability.context import current_trace_id, tag_request
from mlx_manager.observability.logfire_config import instrument_fastapi, instrument_sqlalchemy
from tests.support.running import RunningServer, eventually, running
from tests.support.spans import Spans, ids

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"

router = APIRouter()


@router.get("/items/{item}")
async def get_item(item: int) -> dict[str, str | None]:
    tag_request(f"request-{item}")
    return {"trace": current_trace_id()}


@router.get("/stream")
async def get_stream() -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        for _ in range(5):
            await asyncio.sleep(0.02)
            yield "piece\n"

    return StreamingResponse(pieces())


@router.get("/endless")
async def get_endless() -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        while True:
            await asyncio.sleep(0.01)
            yield "piece\n"

    return StreamingResponse(pieces())


@router.get("/patient")
async def get_patient(request: Request) -> Response:
    """Not streamed: notices only by asking that its client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return Response()


class Unsent(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer nothing."""


@router.get("/given-up")
async def get_given_up(request: Request) -> Response:
    await get_patient(request)
    return Unsent()


@router.get("/broken")
async def get_broken() -> None:
    raise ValueError("a-marked-secret")


@router.get("/lost")
async def get_lost() -> None:
    raise ConnectionError("of ours, not the client's")


@router.get("/health")
async def get_health() -> dict[str, str | None]:
    engine = create_engine("sqlite://")
    instrument_sqlalchemy(engine)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return {"trace": current_trace_id()}


def make_app() -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    app.include_router(router, prefix="/included")
    instrument_fastapi(app)
    instrument_fastapi(app)
    return app


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(make_app()) as server:
        yield server


def trace_of(span: ReadableSpan, spans: Spans) -> list[ReadableSpan]:
    """All of its trace: other servers of this process look into their databases now and then, apart from it."""
    return [one for one in spans.all if ids(one.context)[0] == ids(span.context)[0]]


async def test_a_request_is_one_span_with_its_route(
    server: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    answer = await untraced.get(f"{server.url}/included/items/3")
    span = await spans.wait("GET /included/items/{item}")

    assert trace_of(span, spans) == [span]
    assert span.kind is SpanKind.SERVER
    attributes = span.attributes or {}
    assert attributes["http.route"] == "/included/items/{item}"
    assert attributes["http.response.status_code"] == 200
    assert attributes["logfire.msg"] == "GET /included/items/3"
    assert attributes["mlx.request.id"] == "request-3"
    assert answer.json()["trace"] == ids(span.context)[0]


async def test_both_applications_in_one_process_have_one_span_each(
    server: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    with running(make_app()) as other:
        await untraced.get(f"{server.url}/items/1")
        await untraced.get(f"{other.url}/items/1")
        await eventually(lambda: len(spans.named("GET /items/{item}")) == 2)

    found = spans.named("GET /items/{item}")
    assert [trace_of(span, spans) for span in found] == [[span] for span in found]


async def test_a_stream_is_one_span_until_its_last_byte(
    server: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    await untraced.get(f"{server.url}/stream")
    span = await spans.wait("GET /stream")

    assert spans.of_kind(SpanKind.SERVER) == trace_of(span, spans) == [span]
    assert span.end_time is not None
    assert span.start_time is not None
    assert span.end_time - span.start_time > 0.1e9


@pytest.mark.parametrize("path", ["/endless", "/patient", "/given-up"])
async def test_a_client_that_leaves_is_cancelled_and_no_error(
    server: RunningServer, untraced: httpx.AsyncClient, spans: Spans, path: str
) -> None:
    asking = asyncio.create_task(untraced.get(server.url + path))
    await asyncio.sleep(0.2)
    asking.cancel()
    span = await spans.wait(f"GET {path}")

    assert span.status.status_code is StatusCode.UNSET
    assert (span.attributes or {})["mlx.cancelled"] is True
    assert "error.type" not in (span.attributes or {})


@pytest.mark.parametrize(
    ("path", "error"), [("/broken", "ValueError"), ("/lost", "ConnectionError")]
)
async def test_a_failure_of_ours_is_an_error_without_its_text(
    server: RunningServer, untraced: httpx.AsyncClient, spans: Spans, path: str, error: str
) -> None:
    answer = await untraced.get(server.url + path)
    span = await spans.wait(f"GET {path}")

    assert answer.status_code == 500
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == error
    assert "mlx.cancelled" not in (span.attributes or {})
    assert "a-marked-secret" not in spans.text()


async def test_excluded_paths_leave_no_span_at_any_depth(
    server: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    assert (await untraced.get(f"{server.url}/health")).json() == {"trace": None}
    await untraced.get(f"{server.url}/api/health")
    await untraced.get(f"{server.url}/static/app.css")
    await untraced.get(f"{server.url}/items/1")
    span = await spans.wait("GET /items/{item}")

    assert spans.of_kind(SpanKind.SERVER) == [span]


async def test_a_traceparent_is_continued(
    server: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    answer = await untraced.get(
        f"{server.url}/items/1", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}
    )
    span = await spans.wait("GET /items/{item}")

    assert answer.json()["trace"] == TRACE
    assert ids(span.context)[0] == TRACE
    assert ids(span.parent) == (TRACE, PARENT)


async def test_an_unsampled_traceparent_is_continued_without_spans(
    server: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    answer = await untraced.get(
        f"{server.url}/items/1", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"}
    )
    await untraced.get(f"{server.url}/stream")
    await spans.wait("GET /stream")

    assert answer.json()["trace"] == TRACE
    assert [span.name for span in spans.of_kind(SpanKind.SERVER)] == ["GET /stream"]


async def test_an_outgoing_request_is_a_span_and_carries_its_trace(
    server: RunningServer, spans: Spans
) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{server.url}/items/1")
    incoming = await spans.wait("GET /items/{item}")

    outgoing = spans.one("GET")
    assert outgoing.kind is SpanKind.CLIENT
    assert ids(incoming.parent) == ids(outgoing.context)
    assert answer.json()["trace"] == ids(outgoing.context)[0]
