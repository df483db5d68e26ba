"""What a trace says in one line, and which requests to models it holds. Pure: spans in, values out.

Spans come in any order and in several batches, so both are always computed from all spans of the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mlx_manager.observability import attributes as names
from mlx_manager.observability.span_record import Attributes, SpanRecord
from mlx_manager.traces.summary import TraceStatus, TraceSummary

# Operations that ask a model for something; an agent's or a tool's span repeats the tokens of those inside it.
INFERENCE = frozenset({"chat", "text_completion", "embeddings", "generate_content"})
SESSION_NAMES = (names.CONVERSATION_ID, "session.id")
KEY_NAMES = (names.KEY_ID, "enduser.id")
API_PREFIX = "/v1/"
# No count of ours is larger, and sums of them fit SQLite's integers.
MOST_TOKENS = 2**40

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One request to a model, as the figures count it; `model` is None when it was refused before it reached one."""

    started_ns: int
    duration_s: float
    status: TraceStatus
    model: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    time_to_first_token_s: float | None = None
    time_per_output_token_s: float | None = None


def summarise(trace_id: str, spans: Sequence[SpanRecord]) -> TraceSummary:
    """The trace in one line; `spans` are all that are known of it, at least one, in any order."""
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns, span.span_id))
    root, servers, chats = _root(ordered), _servers(ordered), inferences(ordered)
    chat, server = _attributes(chats), _attributes(servers)
    telling = [*chats, *servers, root]
    started_ns = ordered[0].start_ns
    return TraceSummary(
        trace_id=trace_id,
        name=root.name,
        service=root.service,
        started_ns=started_ns,
        duration_ns=max(span.end_ns for span in ordered) - started_ns,
        status=_status(telling),
        span_count=len(ordered),
        error_type=_error_type(telling),
        operation=_text(chat, names.OPERATION_NAME),
        model=_model(chat),
        provider=_text(chat, names.PROVIDER_NAME),
        backend=_text(chat, names.BACKEND),
        endpoint=_text(server, names.HTTP_ROUTE),
        http_status=_count(server, names.HTTP_STATUS),
        request_id=_text(server, names.REQUEST_ID) or _text(chat, names.REQUEST_ID),
        session=_first(telling, lambda found: _text(found, *SESSION_NAMES)),
        key_id=_first(telling, lambda found: _text(found, *KEY_NAMES)),
        input_tokens=_sum(chats, names.INPUT_TOKENS),
        cached_tokens=_sum(chats, names.CACHE_READ_TOKENS),
        output_tokens=_sum(chats, names.OUTPUT_TOKENS),
        queue_s=_number(chat, names.QUEUE_S),
        time_to_first_token_s=_number(chat, names.TIME_TO_FIRST_TOKEN_S),
        time_per_output_token_s=_number(chat, names.TIME_PER_OUTPUT_TOKEN_S),
    )


def model_requests(spans: Sequence[SpanRecord]) -> tuple[ModelRequest, ...]:
    """The trace's requests to models: its inferences, or what the API refused before there was one."""
    found = inferences(spans)
    if found:
        return tuple(_request(span) for span in found)
    return tuple(
        ModelRequest(span.start_ns, span.duration_ns / 1e9, _status([span]))
        for span in _servers(spans)
        if _is_inference_call(span.attributes)
    )


def inferences(spans: Sequence[SpanRecord]) -> list[SpanRecord]:
    """The spans around one inference each: our own where there are any, else the outermost of others.

    A client that is instrumented describes the same request once more, around ours; that is no second one.
    """
    found = [span for span in spans if span.attributes.get(names.OPERATION_NAME) in INFERENCE]
    ours = [span for span in found if names.BACKEND in span.attributes]
    if ours:
        return ours
    ids = {span.span_id for span in found}
    return [span for span in found if span.parent_span_id not in ids]


def _request(span: SpanRecord) -> ModelRequest:
    found = span.attributes
    return ModelRequest(
        started_ns=span.start_ns,
        duration_s=span.duration_ns / 1e9,
        status=_status([span]),
        model=_model(found),
        input_tokens=_count(found, names.INPUT_TOKENS),
        cached_tokens=_count(found, names.CACHE_READ_TOKENS),
        output_tokens=_count(found, names.OUTPUT_TOKENS),
        time_to_first_token_s=_number(found, names.TIME_TO_FIRST_TOKEN_S),
        time_per_output_token_s=_number(found, names.TIME_PER_OUTPUT_TOKEN_S),
    )


def _root(ordered: Sequence[SpanRecord]) -> SpanRecord:
    """The earliest span whose parent isn't here: there is none, it is still to come, or it is never told to us."""
    ids = {span.span_id for span in ordered}
    # Spans that name each other as parents have no root; any of them will do.
    return next((span for span in ordered if span.parent_span_id not in ids), ordered[0])


def _servers(spans: Iterable[SpanRecord]) -> list[SpanRecord]:
    """Our own server span first: an agent may have been called by a server of its own."""
    servers = [span for span in spans if span.kind == "server"]
    return sorted(servers, key=lambda span: names.REQUEST_ID not in span.attributes)


def _attributes(spans: Sequence[SpanRecord]) -> Attributes:
    return spans[0].attributes if spans else {}


def _is_inference_call(found: Attributes) -> bool:
    route = _text(found, names.HTTP_ROUTE) or ""
    return found.get(names.HTTP_METHOD) == "POST" and route.startswith(API_PREFIX)


def _status(telling: Iterable[SpanRecord]) -> TraceStatus:
    """The worst of what counts: a failure inside that was dealt with doesn't."""
    statuses = {_span_status(span) for span in telling}
    if "error" in statuses:
        return "error"
    return "cancelled" if "cancelled" in statuses else "ok"


def _span_status(span: SpanRecord) -> TraceStatus:
    if span.attributes.get(names.CANCELLED) is True:
        return "cancelled"
    code = _count(span.attributes, names.HTTP_STATUS) or 0
    return "error" if span.status == "error" or code >= 400 else "ok"


def _error_type(telling: Sequence[SpanRecord]) -> str | None:
    failed = [span for span in telling if _span_status(span) == "error"]
    named = _first(failed, lambda found: _text(found, names.ERROR_TYPE))
    code = _first(failed, lambda found: _count(found, names.HTTP_STATUS))
    return named or (str(code) if code else None)


def _model(found: Attributes) -> str | None:
    return _text(found, names.REQUEST_MODEL) or _text(found, names.RESPONSE_MODEL) or None


def _first(spans: Iterable[SpanRecord], read: Callable[[Attributes], T | None]) -> T | None:
    return next((value for span in spans if (value := read(span.attributes)) is not None), None)


def _sum(spans: Iterable[SpanRecord], name: str) -> int | None:
    counts = [count for span in spans if (count := _count(span.attributes, name)) is not None]
    return sum(counts) if counts else None


def _text(found: Attributes, *wanted: str) -> str | None:
    return next((value for name in wanted if isinstance(value := found.get(name), str)), None)


def _count(found: Attributes, name: str) -> int | None:
    """Whoever sends us spans chooses their types: what is no count is none."""
    value = found.get(name)
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS
    return value if is_count else None  # type: ignore[return-value]


def _number(found: Attributes, name: str) -> float | None:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < float("inf") else None
