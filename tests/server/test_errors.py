"""Errors come in the dialect of the API that was called, each with the request's id."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.running import eventually

MESSAGE = {"model": "test/tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
# With a complaint about each, a million wrong messages take 12 s.
QUICK_S = 3.0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1", 404),
        ("GET", "/v1/nothing", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/no/such", 404),
    ],
)
async def test_below_v1_every_error_has_openais_shape(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, path)
    error = response.json()["error"]
    assert response.status_code == status
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["type"] == "invalid_request_error"
    assert error["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing/here", 404), ("POST", "/health", 405)]
)
async def test_everywhere_else_it_is_a_problem_document(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, path)
    problem = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert {"type", "title", "detail", "instance"} <= set(problem)
    assert problem["instance"] == path
    assert problem["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": 5}', b"\xff\xfe"])
async def test_a_body_that_is_no_request_is_a_400(http: httpx.AsyncClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = await http.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_body_that_is_too_large_is_a_413(
    http: httpx.AsyncClient, is_declared: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(33):
            yield b" " * 2**20

    content = b" " * (33 * 2**20) if is_declared else pieces()
    response = await http.post("/v1/chat/completions", content=content)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "content_too_large"
    assert response.json()["error"]["request_id"] == response.headers["X-Request-ID"]


async def test_the_field_that_is_wrong_is_named(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json={**MESSAGE, "temperature": "hot"})
    assert response.json()["error"]["param"] == "temperature"
    assert "number" in response.json()["error"]["message"]


async def test_the_clients_request_id_is_kept_everywhere(http: httpx.AsyncClient) -> None:
    response = await http.post(
        "/v1/chat/completions", json=MESSAGE, headers={"X-Request-ID": "abc-1.2:3"}
    )
    assert response.headers["X-Request-ID"] == "abc-1.2:3"
    assert response.json()["id"] == "chatcmpl-abc-1.2:3"


@pytest.mark.parametrize("offered", ["", "x" * 129, "a b", "a\tb", "{x}", "å"])
async def test_a_request_id_that_is_not_plain_is_replaced(
    http: httpx.AsyncClient, offered: str
) -> None:
    headers = [(b"X-Request-ID", offered.encode())]
    response = await http.get("/health", headers=headers)
    assert len(response.headers["X-Request-ID"]) == 32


async def test_two_requests_have_two_ids(http: httpx.AsyncClient) -> None:
    first, second = await http.get("/health"), await http.get("/health")
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]


async def test_health_can_be_asked_without_a_body(http: httpx.AsyncClient) -> None:
    response = await http.head("/health")
    assert (response.status_code, response.content) == (200, b"")


async def test_a_path_with_control_characters_is_one_plain_line_in_the_log(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mlx_manager"):
        response = await http.get("/evil%0Apath%1b[31m%C2%85%E2%80%A8%7f")
        await eventually(lambda: bool(accesses(caplog)))
    assert response.status_code == 404
    [record] = accesses(caplog)
    line = record.getMessage()
    assert vars(record)["request_id"] == response.headers["X-Request-ID"]
    assert "/evil" in line
    assert "path" in line
    assert line.isprintable()


async def test_a_refused_path_is_its_routes_in_the_log_and_an_unknown_one_is_cut(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    key = "k" * 32
    with caplog.at_level(logging.INFO, "mlx_manager"):
        await http.get(f"/v1/models/{key}")
        await http.get(f"/nothing/{key}/here")
        await http.get("/v1/models/test/tiny")
        await eventually(lambda: len(accesses(caplog)) == 3)

    lines = [record.getMessage().split(" 0.")[0] for record in accesses(caplog)]
    assert lines == [
        "GET /v1/models/{model_id} 404",
        "GET /nothing/…/here 404",
        "GET /v1/models/test/tiny 200",
    ]


def accesses(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "mlx_manager.access"]


LOOK = {"type": "function", "function": {"name": "look"}}
FOO_CALL = {"id": "c", "function": {"name": "look", "arguments": "{}", "foo": 1}}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "foo": 1}]}]},
            "messages[0].content[0].foo",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [FOO_CALL]}]},
            "messages[0].tool_calls[0].function.foo",
        ),
        ({"tools": [LOOK | {"foo": 1}]}, "tools[0].foo"),
        ({"tools": [LOOK], "tool_choice": LOOK | {"foo": 1}}, "tool_choice.foo"),
        (
            {
                "tools": [LOOK],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [LOOK | {"fooBar": 1}]},
                },
            },
            "tool_choice.allowed_tools.tools[0].fooBar",
        ),
        ({"tool_choice": {"type": "wish"}}, "tool_choice"),
        ({"response_format": {"type": "text", "foo": 1}}, "response_format.foo"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "foo": 1}}},
            "response_format.json_schema.foo",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format"),
    ],
)
async def test_a_field_that_nobody_knows_is_refused_by_its_path(
    http: httpx.AsyncClient, changes: dict[str, Any], param: str
) -> None:
    response = await http.post("/v1/chat/completions", json={**MESSAGE, **changes})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert param in error["message"]


async def test_a_name_that_is_no_unicode_is_refused_wherever_it_stands(
    http: httpx.AsyncClient,
) -> None:
    part = {"type": "text", "text": "Hi", "\ud800": 1}
    body = json.dumps({**MESSAGE, "messages": [{"role": "user", "content": [part]}]})
    headers = {"Content-Type": "application/json"}
    response = await http.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("changes", "param"),
    [({"messages": [1] * 1_000_000}, "messages[0]"), ({"model": "a?" * 20_000}, "model")],
)
async def test_a_huge_field_that_is_wrong_is_refused_quickly_and_shortly(
    http: httpx.AsyncClient, changes: dict[str, Any], param: str
) -> None:
    # Of this process, which is client and server: what else the machine does is no fault of theirs.
    start_s = time.process_time()
    response = await http.post("/v1/chat/completions", json={**MESSAGE, **changes})
    assert time.process_time() - start_s < QUICK_S
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert len(response.content) < 1000


async def test_a_json_body_without_its_content_type_is_told_which_to_send(
    http: httpx.AsyncClient,
) -> None:
    response = await http.post("/v1/chat/completions", content=json.dumps(MESSAGE))
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]
