"""Every request to the model API leaves exactly one row, with the status and the error that were sent."""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai as sdk
import pytest
from openai import AsyncOpenAI
from opentelemetry.trace import SpanKind, StatusCode

from mlx_manager.mlx_server.app import create_app
from mlx_manager.mlx_server.audit.search import RequestFilter, search
from mlx_manager.mlx_server.audit.tables import AuditRow
from tests.conftest import ENDLESS_TOKENS
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans

MODEL = "test/tiny"
CHAT = "/v1/chat/completions"
MESSAGES: list[Any] = [{"role": "user", "content": "Count to a million."}]
LARGEST_BODY = 4096


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A server that takes one request at a time and short bodies."""
    settings = settings_for(
        tmp_path_factory.mktemp("small"),
        model_dir,
        max_batch=1,
        max_waiting=0,
        max_body_bytes=LARGEST_BODY,
    )
    with running(create_app(settings)) as server:
        yield server


async def row_of(server: RunningServer, request_id: str) -> AuditRow:
    """The one row of a request that has ended."""
    await eventually(lambda: bool(server.audited(request_id)))
    # Time for a second row, if there were one: the first was written with all that waited.
    await asyncio.sleep(0.3)
    async with server.state.database.sessions() as session:
        [row] = await search(session, RequestFilter(request_id=request_id), 10)
    return row


async def refused(
    server: RunningServer, path: str, content: bytes, **headers: str
) -> tuple[httpx.Response, AuditRow]:
    """Send a body that isn't answered; return what came back and the row."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        sent = {"Content-Type": "application/json"} | headers
        response = await http.post(path, content=content, headers=sent)
    return response, await row_of(server, response.headers["X-Request-ID"])


def encoded(**changes: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": MESSAGES, "max_tokens": 3} | changes).encode()


@pytest.mark.parametrize(
    ("path", "content", "status", "code", "operation", "model", "stream"),
    [
        (CHAT, b"{", 400, "invalid_request", "chat", None, None),
        (CHAT, b'"text"', 400, "invalid_request", "chat", None, None),
        (CHAT, b'{"model": 5}', 400, "invalid_request", "chat", None, None),
        (CHAT, encoded(stream=True, top_p=7), 400, "invalid_request", "chat", MODEL, True),
        (CHAT, encoded(suffix="!"), 400, "unsupported_parameter", "chat", MODEL, False),
        (CHAT, b" " * 9999, 413, "content_too_large", "chat", None, None),
        (CHAT, encoded(model="no/such"), 404, "model_not_found", "chat", "no/such", False),
        ("/v1/completions", b"{}", 400, "invalid_request", "text_completion", None, None),
        ("/v1/embeddings", b"{}", 400, "invalid_request", "embeddings", None, None),
        ("/v1/images/generations", b"{}", 404, "not_found", None, None, None),
        ("/v1/models", b"{}", 405, "method_not_allowed", None, None, None),
    ],
)
async def test_what_is_refused_leaves_one_row_with_what_is_known_of_it(
    small: RunningServer,
    spans: Spans,
    path: str,
    content: bytes,
    status: int,
    code: str,
    operation: str | None,
    model: str | None,
    stream: bool | None,
) -> None:
    response, row = await refused(small, path, content)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert (row.status, row.outcome) == (status, "failed")
    assert (row.error_code, row.error_type) == (error["code"], error["type"])
    assert (row.endpoint, row.operation) == (path, operation)
    assert (row.model, row.stream) == (model, stream)
    assert row.client_address == "127.0.0.1"
    assert row.trace_id == response.headers["X-Trace-ID"]
    assert (row.duration_s or 0) > 0
    assert (row.output_tokens, row.finish_reason) == (None, None)


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [("203.0.113.7", "203.0.113.7"), ("2001:db8::7", "2001:db8::7"), ("sk-or-any-text", None)],
)
async def test_what_a_proxy_on_this_machine_forwards_for_is_an_address_or_nothing(
    small: RunningServer, forwarded: str, address: str | None
) -> None:
    async with httpx.AsyncClient(base_url=small.url) as http:
        headers = {"X-Forwarded-For": forwarded}
        response = await http.post(CHAT, json={}, headers=headers)
    row = await row_of(small, response.headers["X-Request-ID"])
    assert row.client_address == address


async def test_overload_leaves_one_row_and_the_request_before_it_another(
    small: RunningServer, spans: Spans
) -> None:
    async with AsyncOpenAI(
        base_url=f"{small.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=ENDLESS_TOKENS, stream=True, temperature=0
        )
        async with httpx.AsyncClient(base_url=small.url) as http:
            headers = {"Content-Type": "application/json"}
            response = await http.post(CHAT, content=encoded(), headers=headers)
        await stream.close()
    row = await row_of(small, response.headers["X-Request-ID"])
    assert (response.status_code, row.status) == (503, 503)
    assert response.headers["Retry-After"] == "1"
    assert (row.outcome, row.error_code, row.error_type) == ("failed", "overloaded", "server_error")
    assert error_types(spans, MODEL) == ["overloaded"]
    left = await row_of(small, stream.response.headers["X-Request-ID"])
    assert (left.outcome, left.status, left.error_code) == ("cancelled", 200, None)
    assert (left.model, left.stream) == (MODEL, True)


def error_types(spans: Spans, model: str) -> list[object]:
    """The error types of the chats that failed, whose spans must say ERROR."""
    failed = [
        span
        for span in spans.named(f"chat {model}")
        # Not the SDK's own, which other tests may have instrumented.
        if span.kind is SpanKind.INTERNAL and "error.type" in (span.attributes or {})
    ]
    assert {span.status.status_code for span in failed} <= {StatusCode.ERROR}
    return [(span.attributes or {})["error.type"] for span in failed]


async def test_the_sdk_s_error_leads_to_the_row_and_the_trace(
    server: RunningServer, openai: AsyncOpenAI, spans: Spans
) -> None:
    with pytest.raises(sdk.NotFoundError) as met:
        await openai.chat.completions.create(model="no/such", messages=MESSAGES)
    row = await row_of(server, str(met.value.request_id))
    assert (met.value.code, met.value.type) == (row.error_code, row.error_type)
    assert error_types(spans, "no/such") == ["model_not_found"]


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_an_answer_leaves_one_row_with_all_that_was_done(
    server: RunningServer, http: httpx.AsyncClient, is_streamed: bool
) -> None:
    body = encoded(stream=is_streamed, temperature=0)
    headers = {"Content-Type": "application/json"}
    response = await http.post(CHAT, content=body, headers=headers)
    row = await row_of(server, response.headers["X-Request-ID"])
    assert (row.status, row.outcome, row.error_code, row.error_type) == (
        200,
        "completed",
        None,
        None,
    )
    assert (row.model, row.response_model, row.backend) == (MODEL, MODEL, "local")
    assert (row.stream, row.output_tokens, row.finish_reason) == (is_streamed, 3, "length")
    assert row.cached_tokens is not None
    assert (row.input_tokens or 0) > 0
    assert 0 < (row.time_to_first_token_s or 0) <= (row.duration_s or 0)


async def test_a_client_that_leaves_while_it_sends_its_body_has_cancelled(
    server: RunningServer,
) -> None:
    request_id = uuid.uuid4().hex
    address = urlsplit(server.url)
    with closing(socket.create_connection((address.hostname, address.port))) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nX-Request-ID: {request_id}\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\nhalf".encode())
        await asyncio.sleep(0.2)
    row = await row_of(server, request_id)
    assert (row.outcome, row.status, row.error_code) == ("cancelled", None, None)


async def test_what_asks_no_model_leaves_no_row(
    server: RunningServer, http: httpx.AsyncClient
) -> None:
    for path in ("/v1/models", "/v1/models/no/such", "/health", "/nothing"):
        response = await http.get(path, headers={"X-Request-ID": "asks-no-model"})
        assert response.headers["X-Request-ID"] == "asks-no-model"
    last = await http.post(CHAT, content=b"{")
    await row_of(server, last.headers["X-Request-ID"])
    assert server.audited("asks-no-model") == []


async def test_a_server_that_stops_loses_no_row(tmp_path: Path, model_dir: Path) -> None:
    app = create_app(settings_for(tmp_path, model_dir))
    with running(app) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            answers = await asyncio.gather(
                *(http.post("/v1/embeddings", content=b"{}") for _ in range(50))
            )
    ids = {answer.headers["X-Request-ID"] for answer in answers}
    assert {request_id for request_id in ids if len(server.audited(request_id)) == 1} == ids
