"""Behind a proxy that serves the application under a prefix, every rule about paths holds as without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from mlx_manager.app import create_app
from mlx_manager.observability.setup import TelemetryOptions, configure
from tests.support.running import RunningServer, running, settings_for, wait_until

KEY = "a-key-of-the-laptop"
ASKED = {"model": "test/tiny", "prompt": "x", "max_tokens": 1}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A manager with a key, as the proxy reaches it: the prefix is stripped there and told to uvicorn."""
    configure(TelemetryOptions("mlx-test"))
    keys = {"laptop": SecretStr(KEY)}
    settings = settings_for(tmp_path_factory.mktemp("prefix"), model_dir, api_keys=keys)
    with running(create_app(settings), root_path="/llm") as server:
        yield server


def post(server: RunningServer, key: str | None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{server.url}/v1/completions", json=ASKED, headers=headers, timeout=60)


def test_a_key_is_asked_for(behind: RunningServer) -> None:
    refused = post(behind, None)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.get(f"{behind.url}/v1/models").status_code == 401
    assert post(behind, KEY).status_code == 200


def test_a_request_leaves_its_row(behind: RunningServer) -> None:
    request_id = post(behind, KEY).headers["X-Request-ID"]
    wait_until(lambda: bool(behind.audited(request_id)))
    row = httpx.get(f"{behind.url}/api/requests/{request_id}").json()
    assert (row["endpoint"], row["operation"]) == ("/v1/completions", "text_completion")


def test_an_error_is_in_the_dialect_of_its_path(behind: RunningServer) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    wrong = httpx.post(f"{behind.url}/v1/completions", json={}, headers=headers)
    assert (wrong.status_code, "error" in wrong.json()) == (400, True)
    absent = httpx.get(f"{behind.url}/api/traces/{'0' * 32}")
    assert absent.headers["content-type"] == "application/problem+json"


def test_looking_leaves_no_trace(behind: RunningServer) -> None:
    kept = behind.state.traces
    assert kept is not None
    trace_id = httpx.get(f"{behind.url}/api/traces").headers.get("X-Trace-ID")
    seen = post(behind, KEY).headers["X-Trace-ID"]
    wait_until(lambda: kept.get_trace(seen) is not None)
    assert trace_id is None or kept.get_trace(trace_id) is None
