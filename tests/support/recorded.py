"""Traces as the store gives them back, built in milliseconds: what recorded ones look like, without the noise."""

from __future__ import annotations

from collections.abc import Mapping

from mlx_manager.observability.span_record import (
    SpanEvent,
    SpanKind,
    SpanLink,
    SpanRecord,
    SpanStatus,
    Value,
)
from mlx_manager.traces.summarise import summarise
from mlx_manager.traces.summary import Trace

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
BEGIN_NS = 1_800_000_000_000_000_000


def span(
    name: str,
    start_ms: float,
    end_ms: float,
    parent: str | None = "chat",
    *,
    kind: SpanKind = "internal",
    status: SpanStatus = "unset",
    links: tuple[SpanLink, ...] = (),
    events: tuple[SpanEvent, ...] = (),
    trace_id: str = TRACE_ID,
    also: Mapping[str, Value] | None = None,
    **attributes: Value,
) -> SpanRecord:
    """A span whose id is made of its name; dots in attribute names are written as two underscores.

    `also` are further attributes, by their names as they are.
    """
    return SpanRecord(
        trace_id=trace_id,
        span_id=id_of(name),
        parent_span_id=id_of(parent) if parent else None,
        name=name,
        kind=kind,
        start_ns=BEGIN_NS + round(start_ms * 1e6),
        end_ns=BEGIN_NS + round(end_ms * 1e6),
        status=status,
        service="mlx-manager",
        attributes={key.replace("__", "."): value for key, value in attributes.items()}
        | dict(also or {}),
        links=links,
        events=events,
    )


def id_of(name: str) -> str:
    """The id of the span called `name`."""
    return name.encode().hex().ljust(16, "0")[:16]


def trace(*spans: SpanRecord) -> Trace:
    """A trace of these spans."""
    return Trace(summarise(spans[0].trace_id, spans), spans)


def chat_trace(
    *phases: SpanRecord, server_ms: float = 1000, chat: Mapping[str, Value] | None = None
) -> Trace:
    """A request with these phases: a server span of `server_ms`, and in it a chat that ends with its last phase."""
    end_ms = max(((phase.end_ns - BEGIN_NS) / 1e6 for phase in phases), default=server_ms)
    return trace(
        span("POST /v1/chat/completions", 0, server_ms, None, kind="server"),
        span(
            "chat",
            1,
            end_ms,
            "POST /v1/chat/completions",
            gen_ai__operation__name="chat",
            also=chat,
        ),
        *phases,
    )
