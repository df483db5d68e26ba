"""`/api/requests`: the audit log over HTTP, on a real manager."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from mlx_manager.app import create_app
from mlx_manager.mlx_server.app import create_app as create_server
from tests.support.running import RunningServer, running, settings_for, wait_until

MODEL = "test/tiny"
FOUND = [f"found-{number}" for number in range(5)]


def ask(manager: RunningServer, request_id: str) -> None:
    with OpenAI(base_url=f"{manager.url}/v1", api_key="none", max_retries=0) as client:
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=2,
            extra_headers={"X-Request-ID": request_id, "X-Session-ID": f"s-{request_id}"},
        )
    wait_until(lambda: bool(manager.audited(request_id)))


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A manager that has answered five requests and refused one."""
    app = create_app(settings_for(tmp_path_factory.mktemp("requests"), model_dir))
    with running(app) as server:
        for request_id in FOUND:
            ask(server, request_id)
        refused = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={"model": "=cmd"},
            headers={"X-Request-ID": "refused"},
        )
        assert refused.status_code == 400
        wait_until(lambda: bool(server.audited("refused")))
        yield server


def get(manager: RunningServer, path: str = "", **query: Any) -> httpx.Response:
    return httpx.get(f"{manager.url}/api/requests{path}", params=query)


def ids(page: dict[str, Any]) -> list[str]:
    return [row["request_id"] for row in page["requests"]]


def test_the_list_is_newest_first_and_its_pages_meet(manager: RunningServer) -> None:
    first = get(manager, limit=4).json()
    second = get(manager, limit=4, before=first["before"]).json()
    assert ids(first) + ids(second) == ["refused", *reversed(FOUND)]
    assert second["before"] is None


def test_a_live_view_hears_of_what_is_new_and_of_nothing_twice(manager: RunningServer) -> None:
    known = get(manager, limit=1).json()
    assert get(manager, after=known["after"]).json() == {
        "requests": [],
        "before": None,
        "after": known["after"],
    }
    earlier = get(manager, after=known["after"] - 2).json()
    assert ids(earlier) == ["refused", FOUND[-1]]
    assert earlier["after"] == known["after"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"status": "4xx"}, ["refused"]),
        ({"status": "400"}, ["refused"]),
        ({"status": "5xx"}, []),
        ({"outcome": "failed"}, ["refused"]),
        ({"error_code": "invalid_request"}, ["refused"]),
        ({"request_id": FOUND[2]}, [FOUND[2]]),
        ({"model": MODEL, "since": "2020-01-01T00:00:00Z"}, FOUND[::-1]),
        ({"model": MODEL, "until": "2020-01-01T00:00:00Z"}, []),
        ({"model": MODEL, "min_duration_s": 3600}, []),
        ({"model": MODEL, "client_address": "127.0.0.1"}, FOUND[::-1]),
        ({"model": MODEL, "endpoint": "/v1/completions"}, []),
        ({"session_id": f"s-{FOUND[3]}"}, [FOUND[3]]),
        ({"text": "ound-2"}, [FOUND[2]]),
        ({"model": MODEL, "max_duration_s": 0}, []),
        ({"trace_id": "0" * 32}, []),
        ({"id": [1, 2]}, FOUND[1::-1]),
    ],
)
def test_filters_are_honoured_by_list_counts_and_export(
    manager: RunningServer, query: dict[str, Any], found: list[str]
) -> None:
    lines = get(manager, "/export", **query).text.splitlines()
    assert ids(get(manager, **query).json()) == found
    assert get(manager, "/counts", **query).json()["total"] == len(found)
    assert [json.loads(line)["request_id"] for line in lines] == found


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 501}, "limit"),
        ({"status": "6xx"}, "status"),
        ({"outcome": "lost"}, "outcome"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"min_duration_s": -1}, "min_duration_s"),
        ({"before": 2**63}, "before"),
        ({"modle": "x"}, "modle"),
        ({"before": 5, "after": 5}, "after"),
    ],
)
def test_a_wrong_filter_is_a_problem_that_names_it(
    manager: RunningServer, query: dict[str, Any], field: str
) -> None:
    answer = get(manager, **query)
    assert answer.status_code in (400, 422)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["param"] == field


def test_one_request_is_described_by_its_id(manager: RunningServer) -> None:
    row = get(manager, f"/{FOUND[0]}").json()
    assert (row["status"], row["outcome"], row["model"]) == (200, "completed", MODEL)
    assert row["output_tokens"] == 2
    assert row["started_at"].endswith("Z")


def test_an_unknown_request_is_a_problem_document(manager: RunningServer) -> None:
    answer = get(manager, "/nothing")
    assert (answer.status_code, answer.json()["code"]) == (404, "request_not_found")


def test_counts_say_how_requests_ended(manager: RunningServer) -> None:
    counts = get(manager, "/counts").json()
    assert counts == {"total": 6, "outcomes": {"completed": 5, "failed": 1}}


def test_usage_is_added_up_by_what_is_asked_for(manager: RunningServer) -> None:
    by_model = get(manager, "/usage").json()
    assert by_model["by"] == "model"
    assert {one["value"]: (one["requests"], one["failed"]) for one in by_model["usage"]} == {
        MODEL: (5, 0),
        "=cmd": (1, 1),
    }
    [found] = get(manager, "/usage", by="session", session_id=f"s-{FOUND[1]}").json()["usage"]
    row = get(manager, f"/{FOUND[1]}").json()
    assert row["session_id"] == found["value"] == f"s-{FOUND[1]}"
    tokens = ("input_tokens", "cached_tokens", "output_tokens")
    assert {name: found[name] for name in tokens} == {name: row[name] for name in tokens}
    wrong = get(manager, "/usage", by="agent")
    assert (wrong.status_code, wrong.json()["param"]) == (422, "by")


def test_a_csv_export_is_a_file_without_formulas(manager: RunningServer) -> None:
    answer = get(manager, "/export", format="csv")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="requests.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [row["model"] for row in rows] == ["'=cmd"] + [MODEL] * 5


def test_the_inference_server_alone_does_not_show_them(tmp_path: Path, model_dir: Path) -> None:
    paths = create_server(settings_for(tmp_path, model_dir)).openapi()["paths"]
    assert not [path for path in paths if path.startswith("/api/")]
