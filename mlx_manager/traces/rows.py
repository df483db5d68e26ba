"""Spans and summaries as rows of the store's tables, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, NamedTuple, cast

import msgspec

from mlx_manager.observability import attributes as names
from mlx_manager.observability.span_record import (
    Attributes,
    SpanEvent,
    SpanKind,
    SpanLink,
    SpanRecord,
    SpanStatus,
)
from mlx_manager.traces.summarise import ModelRequest
from mlx_manager.traces.summary import TraceSummary

# Stored as their places here: append, never reorder.
KINDS: tuple[SpanKind, ...] = ("internal", "server", "client", "producer", "consumer")
STATUSES: tuple[SpanStatus, ...] = ("unset", "ok", "error")

SUMMARY_COLUMNS = tuple(field.name for field in fields(TraceSummary))
# `dataclasses.astuple` copies each value deeply: a tenth of what writing a trace costs.
_summary_values = attrgetter(*SUMMARY_COLUMNS)
REQUEST_COLUMNS = tuple(field.name for field in fields(ModelRequest))
CONTENT_COLUMNS = ("span_id", "attributes")
SPAN_COLUMNS = "span_id parent_span_id name kind start_ns end_ns status origin details".split()

_Scalar = str | bool | int | float
_Attributes = dict[str, _Scalar | tuple[_Scalar, ...]]


class _Details(msgspec.Struct, array_like=True):
    """What is looked at only together with its span."""

    attributes: _Attributes
    events: list[tuple[str, int, _Attributes]]
    links: list[tuple[bytes, bytes, _Attributes]]


class Origin(NamedTuple):
    """Who made a span: the same for many, so it is stored once."""

    service: str
    scope: str
    resource: bytes

    @property
    def digest(self) -> bytes:
        """What it is found by."""
        parts = (self.service.encode(), self.scope.encode(), self.resource)
        return hashlib.blake2b(msgspec.msgpack.encode(parts), digest_size=16).digest()


_details = msgspec.msgpack.Decoder(_Details)
_attributes = msgspec.msgpack.Decoder(_Attributes)


def origin_of(span: SpanRecord) -> Origin:
    """Who made this span."""
    return Origin(span.service, span.scope, msgspec.msgpack.encode(dict(span.resource)))


def to_span_row(span: SpanRecord, origin: int) -> tuple[Any, ...]:
    """The values of `SPAN_COLUMNS`: all of it but what was said."""
    details = _Details(
        _without_content(span.attributes),
        [(event.name, event.at_ns, _plain(event.attributes)) for event in span.events],
        [
            (bytes.fromhex(link.trace_id), bytes.fromhex(link.span_id), _plain(link.attributes))
            for link in span.links
        ],
    )
    return (
        bytes.fromhex(span.span_id),
        bytes.fromhex(span.parent_span_id) if span.parent_span_id else None,
        span.name,
        KINDS.index(span.kind),
        span.start_ns,
        span.end_ns,
        STATUSES.index(span.status),
        origin,
        msgspec.msgpack.encode(details),
    )


def from_span_row(trace_id: str, row: tuple[Any, ...], origins: Mapping[int, Origin]) -> SpanRecord:
    """The span in a row of `SPAN_COLUMNS`."""
    span_id, parent_span_id, name, kind, start_ns, end_ns, status, origin_id, blob = row
    details, origin = _details.decode(blob), origins[origin_id]
    return SpanRecord(
        trace_id=trace_id,
        span_id=span_id.hex(),
        parent_span_id=parent_span_id.hex() if parent_span_id else None,
        name=name,
        kind=KINDS[kind],
        start_ns=start_ns,
        end_ns=end_ns,
        status=STATUSES[status],
        service=origin.service,
        scope=origin.scope,
        attributes=cast(Attributes, details.attributes),
        resource=cast(Attributes, _attributes.decode(origin.resource)),
        events=tuple(
            SpanEvent(event, at_ns, cast(Attributes, found))
            for event, at_ns, found in details.events
        ),
        links=tuple(
            SpanLink(trace.hex(), span.hex(), cast(Attributes, found))
            for trace, span, found in details.links
        ),
    )


def has_content(span: SpanRecord) -> bool:
    """Whether the span tells what was said."""
    return not names.CONTENT.isdisjoint(span.attributes)


def to_content_row(span: SpanRecord) -> tuple[Any, ...]:
    """The values of `CONTENT_COLUMNS`: what was said."""
    said = {name: span.attributes[name] for name in names.CONTENT & span.attributes.keys()}
    return (bytes.fromhex(span.span_id), msgspec.msgpack.encode(said))


def with_content(span: SpanRecord, blob: bytes | None) -> SpanRecord:
    """The span as it came, from its own row and the attributes in its `contents`, if there are any."""
    if blob is None:
        return span
    said = cast(Attributes, _attributes.decode(blob))
    return replace(span, attributes={**span.attributes, **said})


def to_summary_row(summary: TraceSummary) -> tuple[Any, ...]:
    """The values of `SUMMARY_COLUMNS`."""
    trace_id, *others = _summary_values(summary)
    return (bytes.fromhex(trace_id), *others)


def from_summary_row(row: tuple[Any, ...]) -> TraceSummary:
    """The summary in a row of `SUMMARY_COLUMNS`."""
    trace_id, *others = row
    return TraceSummary(trace_id.hex(), *others)


def _without_content(attributes: Attributes) -> _Attributes:
    if names.CONTENT.isdisjoint(attributes):
        return dict(attributes)
    return {name: value for name, value in attributes.items() if name not in names.CONTENT}


def _plain(attributes: Attributes) -> _Attributes:
    return dict(attributes)
