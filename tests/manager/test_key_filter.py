"""Pages where keys are asked for: they say so, and list what came with one key and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from mlx_manager.app import create_app
from mlx_manager.observability.setup import TelemetryOptions, configure
from tests.support.running import RunningServer, running, settings_for, wait_until

KEYS = {"laptop": "a-key-of-the-laptop", "agent": "another-key-of-an-agent"}
Traces = dict[str, str]


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    configure(TelemetryOptions("mlx-test"))
    keys = {key_id: SecretStr(key) for key_id, key in KEYS.items()}
    settings = settings_for(tmp_path_factory.mktemp("keys"), model_dir, api_keys=keys)
    with running(create_app(settings)) as server:
        yield server


@pytest.fixture(scope="module")
def traces(manager: RunningServer) -> Traces:
    """The trace of one request with each key, once it can be found."""
    found = {key_id: ask(manager, key) for key_id, key in KEYS.items()}
    wait_until(lambda: all(trace in listed(manager, "/traces", "") for trace in found.values()))
    wait_until(lambda: all(trace in listed(manager, "/requests", "") for trace in found.values()))
    return found


def ask(manager: RunningServer, key: str) -> str:
    body = {"model": "test/tiny", "prompt": "x", "max_tokens": 1}
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{manager.url}/v1/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    trace: str = answer.headers["X-Trace-ID"]
    return trace


def listed(manager: RunningServer, page: str, key: str) -> str:
    return httpx.get(f"{manager.url}{page}", params={"key": key}).text


@pytest.mark.parametrize("page", ["/traces", "/requests"])
def test_a_list_holds_what_came_with_a_key(
    manager: RunningServer, traces: Traces, page: str
) -> None:
    html = listed(manager, page, "agent")
    assert f'href="/traces/{traces["agent"]}"' in html
    assert traces["laptop"] not in html
    assert "<option selected>agent</option>" in html


@pytest.mark.parametrize("page", ["/traces", "/requests"])
def test_a_key_that_is_gone_can_still_be_asked_for(
    manager: RunningServer, traces: Traces, page: str
) -> None:
    html = listed(manager, page, "gone")
    assert "<option selected>gone</option>" in html
    assert not any(trace in html for trace in traces.values())


def test_the_interfaces_filter_by_key_too(manager: RunningServer, traces: Traces) -> None:
    with httpx.Client(base_url=manager.url, params={"key_id": "laptop"}) as http:
        rows = http.get("/api/requests").json()["requests"]
        kept = http.get("/api/traces").json()["traces"]
        export = http.get("/api/requests/export").text
    assert [row["trace_id"] for row in rows] == [traces["laptop"]]
    assert [trace["trace_id"] for trace in kept] == [traces["laptop"]]
    assert traces["laptop"] in export
    assert traces["agent"] not in export


def test_the_first_page_says_that_a_key_is_needed(manager: RunningServer) -> None:
    html = httpx.get(manager.url).text
    assert (
        "-H 'Content-Type: application/json' \\\n  -H 'Authorization: Bearer YOUR-KEY' \\\n  -d"
        in html
    )
    assert not any(key in html for key in KEYS.values())
