"""Spans that others send by OTLP: read from Protobuf or JSON, checked, cut to size and redacted like our own."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from google.protobuf.json_format import MessageToJson, ParseDict, ParseError
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.util.types import AttributeValue

from mlx_manager.errors import ContentTooLarge, InvalidRequest
from mlx_manager.observability.known_secrets import holds_secret
from mlx_manager.observability.redaction import (
    clean_attributes,
    clean_event_attributes,
    clean_span_attributes,
    clean_text,
)
from mlx_manager.observability.span_record import (
    Attributes,
    SpanEvent,
    SpanKind,
    SpanLink,
    SpanRecord,
    SpanStatus,
)

# Behind each part of a gzip body the rest is copied.
MOST_MEMBERS = 100
MOST_SPANS = 10_000
MOST_ATTRIBUTES = 128
MOST_EVENTS = 128
MOST_LINKS = 128
# SQLite's integers end here, in the year 2262.
LAST_NS = 2**63 - 1

KINDS: Sequence[SpanKind] = ("internal", "internal", "server", "client", "producer", "consumer")
STATUSES: Sequence[SpanStatus] = ("unset", "ok", "error")
# Where Logfire, Pydantic AI, OpenInference and OpenLLMetry write down what was said: never kept, whoever sends it.
CONTENT = frozenset(
    "request_data response_data events all_messages_events pydantic_ai.all_messages agent_run.messages final_result"
    " tool_arguments tool_response model_request_parameters content body gen_ai.event.content gen_ai.prompt"
    " gen_ai.completion input.value output.value traceloop.entity.input traceloop.entity.output".split()
)
CONTENT_PREFIXES = (
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "llm.input_messages",
    "llm.output_messages",
    "llm.prompts",
    "llm.completions",
)


@dataclass(frozen=True, slots=True)
class Received:
    """What of a request can be kept; `complaint` says why the `rejected` others can't, empty without any."""

    spans: tuple[SpanRecord, ...]
    rejected: int = 0
    complaint: str = ""

    def without(self, count: int) -> Received:
        """The same when for the last `count` of its spans there was no room."""
        if not count:
            return self
        reason = f"there was no room for {count} spans: send smaller batches"
        complaint = "; ".join(filter(None, (self.complaint, reason)))
        return Received(self.spans[:-count], self.rejected + count, complaint)


def gunzip(body: bytes, max_bytes: int) -> bytes:
    """The body without its compression. Raises ContentTooLarge beyond `max_bytes`, InvalidRequest for no gzip."""
    inflated = bytearray()
    rest = body
    # What was compressed piece by piece is one body all the same (RFC 1952, 2.2).
    for _ in range(MOST_MEMBERS):
        rest = _inflate_member(rest, inflated, max_bytes)
        if not rest:
            return bytes(inflated)
    raise InvalidRequest(f"The gzip body has more than {MOST_MEMBERS} parts. Send it as one.")


def _inflate_member(body: bytes, inflated: bytearray, max_bytes: int) -> bytes:
    """Add what the first member holds to `inflated`; return what stands behind it."""
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        inflated += inflater.decompress(body, max_bytes + 1 - len(inflated))
    except zlib.error:
        raise InvalidRequest("The body is not gzip, though Content-Encoding says so.") from None
    if len(inflated) > max_bytes:
        raise ContentTooLarge(
            f"The body has more than {max_bytes} bytes when it is unpacked. Send smaller batches, or have the "
            "administrator raise MLX_SERVER_MAX_BODY_BYTES."
        )
    if not inflater.eof:
        raise InvalidRequest("The gzip body ends too early. Send it again, whole.")
    return inflater.unused_data


def read_spans(body: bytes, *, is_json: bool) -> Received:
    """Read an `ExportTraceServiceRequest`. Raises InvalidRequest when it is none."""
    request = _parse_json(body) if is_json else _parse_protobuf(body)
    spans: list[SpanRecord] = []
    bad = count = 0
    for record in _records(request):
        count += 1
        if record is None:
            bad += 1
        elif len(spans) < MOST_SPANS:
            spans.append(record)
    return Received(tuple(spans), count - len(spans), _complaint(count - bad, bad))


def success(received: Received, *, is_json: bool) -> bytes:
    """The body of the answer to a request that was taken, in part at least."""
    response = ExportTraceServiceResponse()
    if received.rejected:
        response.partial_success.rejected_spans = received.rejected
        response.partial_success.error_message = received.complaint
    return _written(response, is_json=is_json)


def failure(message: str, *, is_json: bool) -> bytes:
    """The body of an answer that takes nothing: OTLP wants gRPC's `Status`, over HTTP, too."""
    return _written(Status(message=message), is_json=is_json)


def _written(message: Message, *, is_json: bool) -> bytes:
    written: str | bytes = (
        MessageToJson(message, indent=None) if is_json else message.SerializeToString()
    )
    return written.encode() if isinstance(written, str) else written


def _complaint(good: int, bad: int) -> str:
    reasons = []
    if bad:
        reasons.append(f"{bad} spans have no valid ids or times")
    if good > MOST_SPANS:
        reasons.append(f"one request may bring {MOST_SPANS} spans: send smaller batches")
    return "; ".join(reasons)


def _parse_protobuf(body: bytes) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise _unreadable("Protobuf") from None
    return request


def _parse_json(body: bytes) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    try:
        document = json.loads(body)
        for span in _json_spans(document):
            _encode_ids(span)
        ParseDict(document, request, ignore_unknown_fields=True)
    except (
        ParseError,
        ArithmeticError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        SystemError,
    ):
        # ArithmeticError: an infinite whole number. SystemError is how Protobuf's C code takes a field's name with
        # half a surrogate pair.
        raise _unreadable("JSON") from None
    return request


def _unreadable(form: str) -> InvalidRequest:
    # The parser's own words quote the body.
    return InvalidRequest(
        f"The body is no ExportTraceServiceRequest in {form}. Send OTLP with the Content-Type that it has."
    )


def _json_spans(document: Any) -> Iterator[dict[str, Any]]:
    for resource in document.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            yield from scope.get("spans", ())


def _encode_ids(span: dict[str, Any]) -> None:
    """Turn OTLP's hex ids into the base64 that Protobuf's JSON mapping reads."""
    for holder in (span, *span.get("links", ())):
        for name in ("traceId", "spanId", "parentSpanId"):
            if name in holder:
                holder[name] = base64.b64encode(_unhexed(holder[name])).decode()


def _unhexed(value: str) -> bytes:
    try:
        return binascii.unhexlify(value)
    except ValueError:
        return b""  # one span with a wrong id must not cost the others


def _records(request: ExportTraceServiceRequest) -> Iterator[SpanRecord | None]:
    for resource_spans in request.resource_spans:
        resource = _resource(resource_spans.resource)
        for scope_spans in resource_spans.scope_spans:
            scope = clean_text(scope_spans.scope.name)
            for span in scope_spans.spans:
                yield _record(span, scope, resource) if _is_valid(span) else None


def _is_valid(span: Span) -> bool:
    has_ids = _is_id(span.trace_id, 16) and _is_id(span.span_id, 8)
    return has_ids and 0 < span.start_time_unix_nano <= span.end_time_unix_nano <= LAST_NS


def _is_id(value: bytes, length: int) -> bool:
    return len(value) == length and any(value) and not holds_secret(value.hex())


def _has_plain_ids(link: Span.Link) -> bool:
    return _is_id(link.trace_id, 16) and not holds_secret(link.span_id.hex())


def _record(span: Span, scope: str, resource: Attributes) -> SpanRecord:
    name = clean_text(span.name)
    return SpanRecord(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex() if _is_id(span.parent_span_id, 8) else None,
        name=name,
        kind=KINDS[span.kind] if 0 <= span.kind < len(KINDS) else "internal",
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=STATUSES[span.status.code] if 0 <= span.status.code < len(STATUSES) else "unset",
        service=str(resource.get("service.name", "")),
        scope=scope,
        attributes=cast(Attributes, clean_span_attributes(name, _attributes(span.attributes))),
        resource=resource,
        events=tuple(_event(event) for event in islice(span.events, MOST_EVENTS)),
        links=tuple(_link(link) for link in islice(span.links, MOST_LINKS) if _has_plain_ids(link)),
    )


def _resource(resource: Resource) -> Attributes:
    return cast(Attributes, clean_attributes(_attributes(resource.attributes)))


def _event(event: Span.Event) -> SpanEvent:
    return SpanEvent(
        clean_text(event.name),
        min(event.time_unix_nano, LAST_NS),
        cast(Attributes, clean_event_attributes(_attributes(event.attributes))),
    )


def _link(link: Span.Link) -> SpanLink:
    attributes = clean_attributes(_attributes(link.attributes))
    return SpanLink(link.trace_id.hex(), link.span_id.hex(), cast(Attributes, attributes))


def _attributes(pairs: Iterable[KeyValue]) -> Mapping[str, AttributeValue]:
    found = ((pair.key, _value(pair.value)) for pair in islice(pairs, MOST_ATTRIBUTES))
    return {name: value for name, value in found if value is not None and not _is_content(name)}


def _is_content(name: str) -> bool:
    return name in CONTENT or name.startswith(CONTENT_PREFIXES)


def _value(value: AnyValue) -> AttributeValue | None:
    """The value, if it is one that an OpenTelemetry attribute can have: bytes and maps are left out."""
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "array_value":
            return _items(value.array_value.values)
        case _:
            return None


def _items(values: Iterable[AnyValue]) -> AttributeValue:
    items = [
        item for value in values if isinstance(item := _value(value), str | bool | int | float)
    ]
    is_mixed = len({type(item) for item in items}) > 1
    return cast(AttributeValue, tuple(map(str, items)) if is_mixed else tuple(items))
