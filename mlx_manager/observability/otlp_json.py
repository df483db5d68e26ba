"""Spans as OTLP/JSON: ids in hex, 64-bit integers as text, as the OTLP specification has it and Protobuf doesn't."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

from mlx_manager.observability.span_record import Attributes, SpanEvent, SpanLink, SpanRecord

KINDS = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}
STATUSES = {"unset": 0, "ok": 1, "error": 2}


def to_otlp_json(spans: Iterable[SpanRecord]) -> bytes:
    """An `ExportTraceServiceRequest` with all `spans`, each below its resource and its scope."""
    resources: defaultdict[bytes, defaultdict[str, list[SpanRecord]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for span in spans:
        resources[msgspec.json.encode(_attributes(span.resource))][span.scope].append(span)
    found = [
        {"resource": {"attributes": msgspec.Raw(resource)}, "scopeSpans": _scopes(scopes)}
        for resource, scopes in resources.items()
    ]
    return msgspec.json.encode({"resourceSpans": found})


def _scopes(scopes: dict[str, list[SpanRecord]]) -> list[dict[str, Any]]:
    return [
        {"scope": {"name": scope}, "spans": [_span(span) for span in spans]}
        for scope, spans in scopes.items()
    ]


def _span(span: SpanRecord) -> dict[str, Any]:
    return {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "parentSpanId": span.parent_span_id or "",
        "name": span.name,
        "kind": KINDS[span.kind],
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
        "events": [_event(event) for event in span.events],
        "links": [_link(link) for link in span.links],
        "status": {"code": STATUSES[span.status]},
    }


def _event(event: SpanEvent) -> dict[str, Any]:
    return {
        "timeUnixNano": str(event.at_ns),
        "name": event.name,
        "attributes": _attributes(event.attributes),
    }


def _link(link: SpanLink) -> dict[str, Any]:
    return {
        "traceId": link.trace_id,
        "spanId": link.span_id,
        "attributes": _attributes(link.attributes),
    }


def _attributes(attributes: Attributes) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in attributes.items()]


def _value(value: object) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value if math.isfinite(value) else _word(value)}
        case tuple():
            return {"arrayValue": {"values": [_value(item) for item in value]}}
        case _:
            return {"stringValue": str(value)}


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
