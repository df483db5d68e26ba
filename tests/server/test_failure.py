"""What nobody drew: an exception in a route."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.responses import StreamingResponse

from mlx_manager.mlx_server.app import create_app
from tests.support.running import eventually, running, settings_for

TEXT = "a marked secret"


async def test_an_unexpected_failure_is_an_answer_and_a_log_line_without_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings_for(tmp_path, tmp_path))

    @app.get("/broken")
    @app.get("/v1/broken")
    async def break_at_once() -> None:
        raise ValueError(TEXT)

    @app.get("/broken-later")
    async def break_later() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            raise ValueError(TEXT)

        return StreamingResponse(pieces())

    with running(app) as server:
        async with httpx.AsyncClient(base_url=server.url) as http:
            answer = await http.get("/v1/broken")
            elsewhere = await http.get("/broken")
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get("/broken-later")
            await eventually(lambda: caplog.text.count("request failed: ValueError") == 3)
    request_id = answer.headers["X-Request-ID"]
    assert answer.status_code == 500
    assert answer.json()["error"]["request_id"] == request_id
    assert elsewhere.headers["Content-Type"] == "application/problem+json"
    problem = elsewhere.json()
    assert (elsewhere.status_code, problem["status"]) == (500, 500)
    assert problem["request_id"] == elsewhere.headers["X-Request-ID"]
    assert f"request_id={request_id}" in caplog.text
    assert "break_at_once" in caplog.text, "the log says where it happened"
    assert TEXT not in caplog.text + answer.text + elsewhere.text
    assert not [record for record in caplog.records if record.levelno > logging.ERROR]
