"""Spans written when they are over: the same at every sink, whichever way they took."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags

from mlx_manager.observability.finished_spans import (
    DirectWriter,
    FinishedSpan,
    SpanWriter,
    TracerWriter,
)
from mlx_manager.observability.instruments import SCOPE
from mlx_manager.observability.known_secrets import REDACTED
from mlx_manager.observability.setup import span_sink, span_writer
from tests.support.spans import Spans, ids, spans

__all__ = ["spans"]

START_NS = 1_700_000_000_000_000_000
OTHER = SpanContext(0xA << 64, 0xB, is_remote=False)
PHASE = FinishedSpan(
    "decode",
    START_NS,
    START_NS + 5_000_000,
    {"mlx.decode.tokens": 7, "api_key": "sk-abcdefgh", "offsets": (0.5, 1.5)},
    "engine_failed",
    [Link(OTHER, {"why": "waited"})],
    [Event("stall", {"why": "prefill"}, START_NS + 1_000_000)],
)


def described(span: ReadableSpan) -> dict[str, Any]:
    """What a sink can tell of a span, without what is different each time and without Logfire's own."""
    attributes = span.attributes or {}
    return {
        "name": span.name,
        "kind": span.kind,
        "parent": ids(span.parent),
        "trace": span.context.trace_id if span.context else None,
        "times": (span.start_time, span.end_time),
        "attributes": {k: v for k, v in attributes.items() if not k.startswith("logfire.")},
        "events": [(e.name, dict(e.attributes or {}), e.timestamp) for e in span.events],
        "links": [(link.context, dict(link.attributes or {})) for link in span.links],
        "status": span.status.status_code,
        "resource": span.resource.attributes,
        "scope": span.instrumentation_scope and span.instrumentation_scope.name,
    }


def test_both_ways_tell_the_same(spans: Spans) -> None:
    tracer = trace.get_tracer(SCOPE)
    writers: list[SpanWriter] = [TracerWriter(tracer), span_writer()]
    parent = tracer.start_span("chat", Context())
    for writer in writers:
        writer.write(parent, PHASE)
    parent.end()

    through_tracer, direct = (described(span) for span in spans.named("decode"))
    assert isinstance(writers[1], DirectWriter)
    assert direct == through_tracer
    assert direct["attributes"]["api_key"] == REDACTED
    assert direct["status"].name == "ERROR"
    assert direct["attributes"]["error.type"] == "engine_failed"
    assert len(direct["events"]) == len(direct["links"]) == 1


def test_each_has_an_id_of_its_own(spans: Spans) -> None:
    parent = trace.get_tracer(SCOPE).start_span("chat", Context())
    for _ in range(3):
        span_writer().write(parent, PHASE)
    parent.end()
    assert len({ids(span.context) for span in spans.all}) == 4


class Flags(SpanProcessor):
    """Whether each span's trace is sampled; exporters of the SDK's own see no others."""

    def __init__(self) -> None:
        self.seen = list[bool]()

    def on_end(self, span: ReadableSpan) -> None:
        self.seen.append(span.context is not None and span.context.trace_flags.sampled)


@pytest.mark.usefixtures("spans")
@pytest.mark.parametrize("sampled", [True, False])
def test_the_flags_of_the_trace_go_along(sampled: bool) -> None:
    caller = SpanContext(0xC << 64, 0xD, is_remote=True, trace_flags=TraceFlags(sampled))
    context = trace.set_span_in_context(NonRecordingSpan(caller), Context())
    flags = Flags()
    with span_sink(flags):
        parent = trace.get_tracer(SCOPE).start_span("chat", context)
        span_writer().write(parent, PHASE)
        parent.end()
    assert flags.seen == [sampled, sampled]
