"""Lay a trace out as a waterfall: one row a span, parents above their children, bars on a common axis. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from mlx_manager.observability import attributes as names
from mlx_manager.observability.span_record import SpanRecord, Value
from mlx_manager.traces.summary import Trace

# A page with more rows is slow to show and to read; the download has all spans.
MOST_ROWS = 1000
DEEPEST = 12

_KINDS: Mapping[str, str] = {
    names.SPAN_TOKENIZE: "tokenize",
    names.SPAN_MODEL_LOAD: "load",
    names.SPAN_QUEUE: "queue",
    names.SPAN_PREFILL: "prefill",
    names.SPAN_DECODE: "decode",
    names.SPAN_COMPUTE: "prefill",
    names.SPAN_PARSE: "parse",
    names.SPAN_RESUME: "load",
    names.SPAN_AUTHENTICATE: "route",
    names.SPAN_ROUTE: "route",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One span's row; `left` and `width` are percent of the axis, `level` counts from 1."""

    span: SpanRecord
    level: int
    kind: str
    left: float
    width: float
    offset_ns: int
    children: int
    position: int
    siblings: int


@dataclass(frozen=True, slots=True)
class TokenTimeline:
    """When tokens of an answer left the engine, in milliseconds from the first; `path` draws them 1,000 wide.

    Of a long answer only every `stride`th is known: a gap then is the time in which `stride` tokens came.
    """

    span_id: str
    tokens: int
    stride: int
    length_ms: float
    median_gap_ms: float
    longest_gap_ms: float
    longest_after: int
    path: str


@dataclass(frozen=True, slots=True)
class Waterfall:
    """All rows of a trace; `ticks` are the axis's marks in percent and nanoseconds."""

    rows: tuple[Row, ...]
    hidden: int
    ticks: tuple[tuple[int, int], ...]
    length_ns: int


def waterfall(trace: Trace) -> Waterfall:
    """Return the rows in the order of a tree, siblings by their start."""
    begin_ns = min(span.start_ns for span in trace.spans)
    length_ns = max(1, max(span.end_ns for span in trace.spans) - begin_ns)
    rows = tuple(_rows(_tree(trace.spans), begin_ns, length_ns))
    ticks = tuple((quarter, length_ns * quarter // 100) for quarter in (0, 25, 50, 75, 100))
    return Waterfall(rows[:MOST_ROWS], len(rows[MOST_ROWS:]), ticks, length_ns)


def token_timelines(trace: Trace) -> list[TokenTimeline]:
    """One for each span that says when its tokens came."""
    found = (
        (span, offsets(span.attributes.get(names.DECODE_TOKEN_OFFSETS_MS))) for span in trace.spans
    )
    return [_timeline(span, times) for span, times in found if len(times) > 1]


def offsets(value: Value | None) -> list[float]:
    """Milliseconds in a list of numbers, or in their text with commas; empty when it is neither."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, tuple | list):
        return []
    try:
        return sorted(float(part) for part in parts)
    except ValueError:
        return []


def _tree(spans: tuple[SpanRecord, ...]) -> dict[str | None, list[SpanRecord]]:
    """The children of each span by their start; those whose parent isn't kept stand below None."""
    known = {span.span_id for span in spans}
    below: dict[str | None, list[SpanRecord]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: (span.start_ns, -span.end_ns)):
        has_parent = span.parent_span_id in known and span.parent_span_id != span.span_id
        below[span.parent_span_id if has_parent else None].append(span)
    return below


def _rows(
    below: dict[str | None, list[SpanRecord]], begin_ns: int, length_ns: int
) -> Iterator[Row]:
    # A stack of our own: another program's spans may be nested deeper than Python's calls can be.
    waiting = [_placed(below[None], 1)]
    while waiting:
        placed = next(waiting[-1], None)
        if placed is None:
            waiting.pop()
            continue
        span, level, position, siblings = placed
        children = below.pop(span.span_id, [])
        offset_ns = span.start_ns - begin_ns
        yield Row(
            span=span,
            level=level,
            kind=kind_of(span),
            left=round(100 * offset_ns / length_ns, 3),
            width=round(100 * max(0, span.duration_ns) / length_ns, 3),
            offset_ns=offset_ns,
            children=len(children),
            position=position,
            siblings=siblings,
        )
        if children:
            waiting.append(_placed(children, level + 1))


def _placed(spans: list[SpanRecord], level: int) -> Iterator[tuple[SpanRecord, int, int, int]]:
    return ((span, level, index, len(spans)) for index, span in enumerate(spans, 1))


def kind_of(span: SpanRecord) -> str:
    """Which colour a span has."""
    if span.name in _KINDS:
        return _KINDS[span.name]
    if span.kind == "server":
        return "server"
    if names.OPERATION_NAME in span.attributes:
        return "cloud" if span.kind == "client" else "chat"
    if names.DB_SYSTEM in span.attributes:
        return "database"
    return "client" if span.kind == "client" else "other"


def _timeline(span: SpanRecord, times: list[float]) -> TokenTimeline:
    gaps = [after - before for before, after in pairwise(times)]
    longest = max(range(len(gaps)), key=gaps.__getitem__)
    length_ms = (times[-1] - times[0]) or 1.0
    # Tokens that fall on the same pixel are drawn once.
    marks = sorted({round(1000 * (time - times[0]) / length_ms, 1) for time in times})
    stride = max(1, _whole(span, names.DECODE_TOKEN_STRIDE) or 1)
    tokens = _whole(span, names.DECODE_TOKENS) if stride > 1 else None
    return TokenTimeline(
        span_id=span.span_id,
        tokens=tokens or (len(times) - 1) * stride + 1,
        stride=stride,
        length_ms=length_ms,
        median_gap_ms=statistics.median(gaps),
        longest_gap_ms=gaps[longest],
        longest_after=longest * stride + 1,
        path="".join(f"M{mark:g} 0V24" for mark in marks),
    )


def _whole(span: SpanRecord, name: str) -> int | None:
    value = span.attributes.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
