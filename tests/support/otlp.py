"""What OTLP says of spans, put into our words by the protocol's own types and by none of our code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from mlx_manager.observability.span_record import (
    Attributes,
    SpanEvent,
    SpanKind,
    SpanLink,
    SpanRecord,
    SpanStatus,
    Value,
)

KINDS: dict[Span.SpanKind.ValueType, SpanKind] = {
    Span.SPAN_KIND_INTERNAL: "internal",
    Span.SPAN_KIND_SERVER: "server",
    Span.SPAN_KIND_CLIENT: "client",
    Span.SPAN_KIND_PRODUCER: "producer",
    Span.SPAN_KIND_CONSUMER: "consumer",
}
STATUSES: dict[Status.StatusCode.ValueType, SpanStatus] = {
    Status.STATUS_CODE_UNSET: "unset",
    Status.STATUS_CODE_OK: "ok",
    Status.STATUS_CODE_ERROR: "error",
}


def records(bodies: Iterable[bytes]) -> dict[tuple[str, str], SpanRecord]:
    """The spans of export requests by trace id and span id."""
    found = [
        _record(span, scope, resource)
        for body in bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    return {(record.trace_id, record.span_id): record for record in found}


def names(pairs: Iterable[KeyValue]) -> Iterator[str]:
    """The names of attributes."""
    return (pair.key for pair in pairs)


def _record(span: Span, scope: ScopeSpans, resource: ResourceSpans) -> SpanRecord:
    of_resource = _attributes(resource.resource.attributes)
    return SpanRecord(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex() or None,
        name=span.name,
        kind=KINDS[span.kind],
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=STATUSES[span.status.code],
        service=str(of_resource["service.name"]),
        scope=scope.scope.name,
        attributes=_attributes(span.attributes),
        resource=of_resource,
        events=tuple(
            SpanEvent(event.name, event.time_unix_nano, _attributes(event.attributes))
            for event in span.events
        ),
        links=tuple(
            SpanLink(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes))
            for link in span.links
        ),
    )


def _attributes(pairs: Iterable[KeyValue]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        items: Value = tuple(_value(item) for item in value.array_value.values)  # type: ignore[assignment]
        return items
    assert kind is not None
    plain: Value = getattr(value, kind)
    return plain
