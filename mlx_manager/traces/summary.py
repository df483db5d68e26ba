"""What the trace store answers: traces in a line each, filters, pages, whole traces, figures by model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mlx_manager.observability.span_record import SpanRecord

TraceStatus = Literal["ok", "error", "cancelled"]


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A trace in one line of a list. None where it has no such thing (no model: it was no chat)."""

    trace_id: str
    name: str
    service: str
    started_ns: int
    duration_ns: int
    status: TraceStatus
    span_count: int
    error_type: str | None = None
    operation: str | None = None
    model: str | None = None
    provider: str | None = None
    backend: str | None = None
    endpoint: str | None = None
    http_status: int | None = None
    request_id: str | None = None
    session: str | None = None
    key_id: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    queue_s: float | None = None
    time_to_first_token_s: float | None = None
    time_per_output_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class TraceFilter:
    """Which traces are wanted; None asks for nothing. `text` is part of a name or model, or begins an id."""

    model: str | None = None
    status: TraceStatus | None = None
    operation: str | None = None
    endpoint: str | None = None
    error_type: str | None = None
    session: str | None = None
    key_id: str | None = None
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class TracePage:
    """Some traces, newest first; `next_cursor` leads to the page below and is None on the last one."""

    traces: tuple[TraceSummary, ...]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole trace; spans in the order of their start."""

    summary: TraceSummary
    spans: tuple[SpanRecord, ...]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds at which 50, 95 and 99 of a hundred requests are done; None without any.

    `p95_trace_id` and `p99_trace_id` lead to a trace that took about so long.
    """

    count: int = 0
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    p50_trace_id: str | None = None
    p95_trace_id: str | None = None
    p99_trace_id: str | None = None


@dataclass(frozen=True, slots=True)
class ModelStats:
    """What one model did in a stretch of time; `model` is None for requests that reached none."""

    model: str | None
    requests: int = 0
    errors: int = 0
    cancelled: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    duration: Percentiles = field(default_factory=Percentiles)
    time_to_first_token: Percentiles = field(default_factory=Percentiles)
    time_per_output_token: Percentiles = field(default_factory=Percentiles)


@dataclass(frozen=True, slots=True)
class StatsBucket:
    """One column of a chart: what happened in `[start_ns, start_ns + width)`."""

    start_ns: int
    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    p50_s: float | None = None
    p95_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures over `[since_ns, until_ns)`: by model, the busiest first, and over time in columns of equal width."""

    since_ns: int
    until_ns: int
    bucket_ns: int
    models: tuple[ModelStats, ...]
    buckets: tuple[StatsBucket, ...]
