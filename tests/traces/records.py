"""Spans to store, made by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

from mlx_manager.observability.span_record import SpanRecord
from mlx_manager.traces.store import TraceStore

S = 1_000_000_000
START_NS = 1_700_000_000 * S


def trace_id(number: int) -> str:
    return f"{number:032x}"


def span_id(number: int) -> str:
    return f"{number:016x}"


def span(
    trace: int, number: int, parent: int | None = None, *, at_s: float = 0, took_s: float = 1, **changes: Any
) -> SpanRecord:  # fmt: skip
    """Span `number` of a trace; `at_s` seconds after the moment that all tests begin at."""
    start_ns = START_NS + round(at_s * S)
    values: dict[str, Any] = {
        "trace_id": trace_id(trace),
        "span_id": span_id(number),
        "parent_span_id": None if parent is None else span_id(parent),
        "name": f"span {number}",
        "kind": "internal",
        "start_ns": start_ns,
        "end_ns": start_ns + round(took_s * S),
        "service": "mlx-test",
    }
    return SpanRecord(**values | changes)


def chat(trace: int, number: int = 2, parent: int | None = 1, **changes: Any) -> SpanRecord:
    """The span around one inference of ours; `attributes` come on top of those it has."""
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mlx",
        "gen_ai.request.model": "tiny",
        "mlx.backend": "local",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "mlx.time_to_first_token_s": 0.25,
    } | changes.pop("attributes", {})
    return span(trace, number, parent, attributes=attributes, **changes)


def server(trace: int, number: int = 1, parent: int | None = None, **changes: Any) -> SpanRecord:
    """The span around one request over HTTP."""
    attributes = {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "mlx.request.id": f"request-{trace}",
    } | changes.pop("attributes", {})
    values = {"name": "POST /v1/chat/completions", "kind": "server"} | changes
    return span(trace, number, parent, attributes=attributes, **values)


def put(store: TraceStore, *spans: SpanRecord) -> None:
    """Store them, in a batch of their own."""
    for record in spans:
        assert store.put(partial(_same, record))
    assert store.flush(30)


def _same(record: SpanRecord) -> SpanRecord:
    return record
