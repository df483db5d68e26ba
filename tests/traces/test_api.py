"""The store over HTTP."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mlx_manager.app import create_app
from mlx_manager.observability.otlp_import import read_spans
from mlx_manager.observability.otlp_json import to_otlp_json
from mlx_manager.observability.span_record import SpanEvent, SpanLink
from mlx_manager.traces.store import TraceStore
from tests.support.running import RunningServer, running, settings_for
from tests.traces.conftest import TINY, PlainTransport
from tests.traces.records import START_NS, put, span, span_id, trace_id

Ask = Callable[..., str]


def test_a_request_is_listed_and_shown(http: httpx.Client, ask: Ask) -> None:
    before = datetime.now(UTC)
    traced = ask()
    (line,) = http.get("/api/traces", params={"text": traced}).json()["traces"]
    assert (line["trace_id"], line["model"], line["output_tokens"]) == (traced, TINY, 3)
    assert (line["endpoint"], line["http_status"], line["status"]) == ("/v1/completions", 200, "ok")
    assert before <= datetime.fromisoformat(line["started_at"]) <= datetime.now(UTC)
    trace = http.get(f"/api/traces/{traced}").json()
    assert trace["summary"] == line
    names = [span["name"] for span in trace["spans"]]
    assert names[:2] == ["POST /v1/completions", f"text_completion {TINY}"]
    assert {"tokenize", "queue", "prefill", "decode"} <= set(names)
    http_span, chat, *_ = trace["spans"]
    assert chat["parent_span_id"] == http_span["span_id"]
    assert chat["attributes"]["gen_ai.response.finish_reasons"] == ["length"]
    assert chat["resource"]["service.name"] == "mlx-test"


def test_statements_outside_of_a_request_are_no_traces(http: httpx.Client, ask: Ask) -> None:
    ask()
    lines = http.get("/api/traces").json()["traces"]
    # A request of another test may be on its way still, with its chat and without its own span.
    assert {line["name"].split()[0] for line in lines} <= {"POST", "chat"}


def test_filters_and_pages_reach_the_store(http: httpx.Client, ask: Ask) -> None:
    asked = [ask(max_tokens=count) for count in (1, 2, 3)]
    since = http.get(f"/api/traces/{asked[0]}").json()["summary"]["started_at"]
    first = http.get("/api/traces", params={"since": since, "limit": 2}).json()
    rest = {"since": since, "limit": 2, "cursor": first["next_cursor"]}
    second = http.get("/api/traces", params=rest).json()
    listed = [line["trace_id"] for page in (first, second) for line in page["traces"]]
    assert listed == asked[::-1]
    assert second["next_cursor"] is None
    for nothing in ("model=none", "status=error", "min_duration_s=1e6", "min_tokens=999"):
        assert http.get(f"/api/traces?{nothing}").json()["traces"] == []
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert http.get("/api/traces", params={"since": later}).json()["traces"] == []
    assert http.get("/api/traces", params={"since": "9999-01-01T00:00:00Z"}).json()["traces"] == []
    before = http.get("/api/traces", params={"until": since, "limit": 500}).json()["traces"]
    assert not {line["trace_id"] for line in before} & {*asked}


def test_every_filter_of_the_query_reaches_the_store(http: httpx.Client, ask: Ask) -> None:
    traced = ask(max_tokens=4, session="own-session")
    whole = http.get(f"/api/traces/{traced}").json()["summary"]
    tokens = whole["input_tokens"] + whole["output_tokens"]
    fitting: dict[str, Any] = {
        "operation": "text_completion",
        "endpoint": "/v1/completions",
        "session": "own-session",
        "max_tokens": tokens,
        "min_tokens": tokens,
        "max_duration_s": whole["duration_s"] + 1e-6,
        "min_duration_s": whole["duration_s"] - 1e-6,
        "model": TINY,
        "status": "ok",
    }
    others = {
        "operation": "chat",
        "endpoint": "/v1/chat/completions",
        "session": "another",
        "max_tokens": tokens - 1,
        "max_duration_s": whole["duration_s"] / 2,
        "error_type": "overloaded",
    }

    def finds(query: dict[str, Any]) -> list[str]:
        lines = http.get("/api/traces", params={"text": traced} | query).json()["traces"]
        return [line["trace_id"] for line in lines]

    assert finds(fitting) == [traced]
    assert [name for name, value in others.items() if finds({name: value})] == []


def test_the_figures_count_requests_and_lead_to_traces(http: httpx.Client, ask: Ask) -> None:
    ask()
    stats = http.get("/api/traces/stats", params={"buckets": 24, "model": TINY}).json()
    (model,) = stats["models"]
    assert model["requests"] == sum(bucket["requests"] for bucket in stats["buckets"]) >= 1
    assert model["duration"]["p50_s"] >= model["time_to_first_token"]["p50_s"] > 0
    assert http.get(f"/api/traces/{model['duration']['p99_trace_id']}").status_code == 200
    assert (len(stats["buckets"]), stats["bucket_s"]) == (24, 3600)
    assert http.get("/api/traces/stats", params={"model": "none"}).json()["models"] == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("?limit=x", "limit"),
        ("?limit=0", "limit"),
        ("?limit=501", "limit"),
        ("?status=fine", "status"),
        ("?min_duration_s=nan", "min_duration_s"),
        ("?min_duration_s=-1", "min_duration_s"),
        ("?max_tokens=1.5", "max_tokens"),
        ("?since=yesterday", "since"),
        ("?since=2026-01-01T00:00:00", "since"),
        ("?model=", "model"),
        ("?modle=tiny", "modle"),
        ("?cursor=none-of-ours", "cursor"),
        ("/stats?buckets=0", "buckets"),
        ("/stats?buckets=1001", "buckets"),
        ("/stats?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "until"),
    ],
)
def test_a_query_that_makes_no_sense_is_a_problem_that_names_it(
    http: httpx.Client, path: str, name: str
) -> None:
    answer = http.get(f"/api/traces{path}")
    problem = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.status_code, problem["status"], problem["param"]) == (422, 422, name)
    assert problem["code"] == "invalid_query"
    assert name in problem["detail"]


@pytest.mark.parametrize("path", ["/api/traces/abc", f"/api/traces/{'0' * 32}/otlp"])
def test_an_unknown_trace_is_a_problem(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"]) == (404, "trace_not_found")


def test_what_json_has_no_word_for_is_told_as_text(http: httpx.Client, kept: TraceStore) -> None:
    put(kept, span(1, 1, attributes={"none": math.nan, "most": math.inf, "list": (1.0, -math.inf)}))
    (told,) = http.get(f"/api/traces/{trace_id(1)}").json()["spans"]
    assert told["attributes"] == {"none": "nan", "most": "inf", "list": [1.0, "-inf"]}


def test_an_export_is_what_opentelemetrys_own_types_read(http: httpx.Client, ask: Ask) -> None:
    traced = ask()
    answer = http.get(f"/api/traces/{traced}/otlp")
    assert answer.headers["Content-Disposition"] == f'attachment; filename="trace-{traced}.json"'
    read = read_spans(answer.content, is_json=True)
    assert read.rejected == 0
    shown = http.get(f"/api/traces/{traced}").json()["spans"]
    assert {record.span_id for record in read.spans} == {one["span_id"] for one in shown}
    assert {record.trace_id for record in read.spans} == {traced}


def test_nothing_gets_lost_between_a_record_and_otlp() -> None:
    record = span(
        0xAB, 0xCD, 0xEF, kind="consumer", status="ok", scope="lib", resource={"service.name": "mlx-test"},
        attributes={"text": "ü", "yes": True, "big": 2**63 - 1, "half": 0.5, "list": (1, 2), "most": math.inf},
        events=(SpanEvent("moment", START_NS + 1, {"at": 1}),),
        links=(SpanLink(trace_id(5), span_id(6), {"why": "waited"}),),
    )  # fmt: skip
    others = (
        span(1, 1, resource={"service.name": "other"}, service="other"),
        span(1, 2, scope="x"),
    )
    written = to_otlp_json([record, *others])
    read = {one.span_id: one for one in read_spans(written, is_json=True).spans}
    assert read[record.span_id] == record
    assert len(read) == 3


def test_kinds_and_states_have_the_numbers_of_the_specification() -> None:
    for kind in ("internal", "server", "client", "producer", "consumer"):
        document = to_otlp_json([span(1, 1, kind=kind)]).decode()
        assert f'"kind":{Span.SpanKind.Value(f"SPAN_KIND_{kind.upper()}")}' in document


def test_a_store_that_can_not_be_opened_keeps_no_request_from_its_answer(
    tmp_path: Path, model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "traces.db"
    folder.mkdir()
    app = create_app(settings_for(tmp_path, model_dir))
    with caplog.at_level(logging.ERROR), running(app) as server:
        assert ask_plainly(server) == 200
        answer = httpx.get(f"{server.url}/api/traces")
    assert (answer.status_code, answer.json()["code"]) == (503, "traces_unavailable")
    assert str(folder) in caplog.text


def test_a_store_that_is_off_makes_no_file(tmp_path: Path, model_dir: Path) -> None:
    with running(create_app(settings_for(tmp_path, model_dir, traces=False))) as server:
        assert ask_plainly(server) == 200
        assert httpx.get(f"{server.url}/api/traces").status_code == 503
    assert not (tmp_path / "traces.db").exists()


def ask_plainly(server: RunningServer) -> int:
    body = {"model": TINY, "prompt": "x", "max_tokens": 1}
    with httpx.Client(transport=PlainTransport(), timeout=60) as client:
        return client.post(f"{server.url}/v1/completions", json=body).status_code
