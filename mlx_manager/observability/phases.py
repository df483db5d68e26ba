"""The phases that a request reached, as spans: those that all work begins with, and what the others are made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from opentelemetry.sdk.trace import Event
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.util.types import AttributeValue

from mlx_manager.chat.events import Interval, Load, Timeline, TraceContext
from mlx_manager.chat.request import Origin
from mlx_manager.observability import attributes as names
from mlx_manager.observability.finished_spans import FinishedSpan

Attributes = dict[str, AttributeValue]


def phases_until_admitted(timeline: Timeline, ended_ns: int) -> Iterator[FinishedSpan]:
    """The phases before the engine works."""
    yield from interval_span(names.SPAN_ROUTE, timeline.routing, ended_ns, _routed(timeline))
    yield from interval_span(
        names.SPAN_MODEL_LOAD, timeline.model_load, ended_ns, _loaded(timeline)
    )
    yield from interval_span(names.SPAN_TOKENIZE, timeline.tokenize, ended_ns, {})
    for phase in phase_span(
        names.SPAN_QUEUE, timeline.queued_ns, timeline.admitted_ns, ended_ns, _queued(timeline)
    ):
        # What it waited for last comes first.
        followed = [_link(other, names.REASON_SHARED_PREFIX) for other in timeline.followed[::-1]]
        behind = [_link(other, names.REASON_WAITED_BEHIND) for other in timeline.waited_behind]
        yield phase._replace(links=(*followed, *behind), events=tuple(_grammar_ready(timeline)))


def resume_spans(timeline: Timeline, ended_ns: int, *, is_over: bool) -> Iterator[FinishedSpan]:
    """The times from when a request was lost to when it went on; those that are over, or not."""
    for one in timeline.resumptions:
        if (one.resumed_ns is not None) == is_over:
            attributes: Attributes = {
                names.RESUME_AFTER_TOKEN: one.after_token,
                names.RESUME_ATTEMPTS: one.attempts,
                names.RESUME_CAUSE: one.how,
            }
            yield from phase_span(
                names.SPAN_RESUME, one.lost_ns, one.resumed_ns, ended_ns, attributes
            )


def resumes(timeline: Timeline) -> int | None:
    """How often a request was given to an engine process again; None when it never was."""
    return sum(one.attempts for one in timeline.resumptions) or None


def phase_span(
    name: str, start_ns: int | None, end_ns: int | None, ended_ns: int, attributes: Attributes
) -> Iterator[FinishedSpan]:
    """One phase, if it was reached; one without an end lasted as long as the request, until `ended_ns`."""
    if start_ns is not None:
        end_ns = ended_ns if end_ns is None else end_ns
        yield FinishedSpan(name, start_ns, max(start_ns, end_ns), attributes)


def interval_span(
    name: str, interval: Interval | None, ended_ns: int, attributes: Attributes
) -> Iterator[FinishedSpan]:
    """The same from an interval."""
    if interval is not None:
        yield from phase_span(name, interval.start_ns, interval.end_ns, ended_ns, attributes)


def known(found: Mapping[str, AttributeValue | None]) -> Attributes:
    """Leave out what isn't known."""
    return {name: value for name, value in found.items() if value is not None}


def taken_at(origin: Origin) -> dict[str, AttributeValue | None]:
    """Return the address and the port that a request was taken at."""
    address, port = origin.server or (None, None)
    return {names.SERVER_ADDRESS: address, names.SERVER_PORT: port}


def between_s(start_ns: int | None, end_ns: int | None) -> float | None:
    """Seconds between two moments in nanoseconds; None when one wasn't reached."""
    return None if start_ns is None or end_ns is None else seconds(start_ns, end_ns)


def seconds(start_ns: int, end_ns: int) -> float:
    """Seconds between two moments in nanoseconds."""
    # A wall clock that is set back in between must not make a duration negative: metrics refuse that, loudly.
    return max(end_ns - start_ns, 0) / 1e9


def _link(other: TraceContext, reason: str) -> Link:
    flags = TraceFlags(other.flags)
    context = SpanContext(other.trace_id, other.span_id, is_remote=False, trace_flags=flags)
    return Link(context, {names.LINK_REASON: reason})


def _grammar_ready(timeline: Timeline) -> Iterator[Event]:
    """When an answer's grammar was ready, if it waited for one."""
    if timeline.grammar_ready_ns is None:
        return
    compile_s = timeline.grammar_compile_ns / 1e9
    attributes: dict[str, AttributeValue | None] = {
        names.GRAMMAR_WAIT_S: between_s(timeline.queued_ns, timeline.grammar_ready_ns),
        names.GRAMMAR_COMPILE_S: compile_s or None,
    }
    yield Event(names.EVENT_GRAMMAR_READY, known(attributes), timeline.grammar_ready_ns)


def _routed(timeline: Timeline) -> Attributes:
    if timeline.route is None:
        return {}
    return {names.BACKEND: timeline.route.backend, names.ROUTE_MODEL: timeline.route.model}


def _queued(timeline: Timeline) -> Attributes:
    queued: dict[str, AttributeValue | None] = {
        names.QUEUE_PRIORITY: timeline.priority,
        names.QUEUE_REASON: timeline.queue_reason,
        names.QUEUE_OVERTAKEN: timeline.overtaken or None,
        names.QUEUE_KV_BYTES: timeline.kv_bytes,
        names.QUEUE_SHARED_PREFIX_S: timeline.followed_ns / 1e9 if timeline.followed_ns else None,
    }
    return known(queued)


def _loaded(timeline: Timeline) -> Attributes:
    load = timeline.load or Load()
    loaded: dict[str, AttributeValue | None] = {
        names.MODEL_SOURCE: timeline.route.source if timeline.route else None,
        names.MODEL_ADAPTER: timeline.route.adapter if timeline.route else None,
        names.WEIGHTS_BYTES: load.weights_bytes,
        names.RESERVED_BYTES: load.reserved_bytes,
        names.EVICTED: load.evicted or None,
        names.LOADED_SHARE: load.share,
        names.LOAD_PROCESS_S: load.process_s,
        names.LOAD_WEIGHTS_S: load.weights_s,
        names.LOAD_TOKENIZER_S: load.tokenizer_s,
    }
    return known(loaded)
