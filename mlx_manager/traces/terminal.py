"""Traces on a terminal: a list with a line each, and one trace as a waterfall."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlx_manager.errors import InvalidRequest, TraceNotFound
from mlx_manager.observability import attributes as names
from mlx_manager.observability.span_record import SpanRecord
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.summary import Trace, TraceFilter, TraceSummary
from mlx_manager.traces.trace_table import (
    STATUS_STYLES,
    elapsed_text,
    plain,
    time_text,
    trace_table,
)

FOLLOW_EVERY_S = 1.0
# Traces that are looked at each time: more of them in a second are not all told.
LOOK = 500
INDENT = "  "
KIND_STYLES = {"server": "cyan", "client": "magenta"}

# What one looks for first on a span, in this order, and how it is said.
FACTS: Sequence[tuple[str, str]] = (
    (names.ERROR_TYPE, "{}"),
    (names.HTTP_STATUS, "HTTP {}"),
    (names.CANCELLED, "cancelled: {}"),
    (names.INPUT_TOKENS, "{} in"),
    (names.CACHE_READ_TOKENS, "{} cached"),
    (names.OUTPUT_TOKENS, "{} out"),
    (names.RESPONSE_FINISH_REASONS, "{}"),
    (names.PREFILL_TOKENS, "{} tokens"),
    (names.CACHE_OUTCOME, "cache {}"),
    (names.DECODE_TOKENS, "{} tokens"),
    (names.DECODE_TOKENS_PER_S, "{:.1f} tokens/s"),
    (names.BATCH_WIDTH_MAX, "batch up to {}"),
    (names.DB_QUERY, "{}"),
    (names.URL_FULL, "{}"),
)


def find_trace(reader: TraceReader, prefix: str) -> Trace:
    """The one trace whose id begins with `prefix`. Raises TraceNotFound, or InvalidRequest when there are several."""
    prefix = prefix.lower()
    found = reader.find_ids(prefix, limit=4)
    if len(found) > 1 and prefix not in found:
        ids = ", ".join(found[:3]) + (" …" if len(found) > 3 else "")
        raise InvalidRequest(f"Several traces begin with {prefix}: {ids}. Give more digits.")
    trace = reader.get_trace(found[0]) if found else None
    if trace is None:
        raise TraceNotFound(f"There is no trace {prefix}. `mlx-manager traces` lists them.")
    return trace


def print_traces(reader: TraceReader, wanted: TraceFilter, limit: int, screen: Console) -> None:
    """Print the newest traces that fit, the newest first."""
    traces = reader.list_traces(wanted, limit).traces
    screen.print(trace_table(traces, screen.width) if traces else "No trace fits.")


def follow_traces(reader: TraceReader, wanted: TraceFilter, limit: int, screen: Console) -> None:
    """Print the last `limit` traces and then each new one, once nothing more is added to it, until Ctrl-C."""
    looks = settled(reader, wanted, limit, lambda: time.sleep(FOLLOW_EVERY_S))
    for number, traces in enumerate(looks):
        screen.print(trace_table(traces, screen.width, has_header=number == 0))


def settled(
    reader: TraceReader, wanted: TraceFilter, limit: int, wait: Callable[[], object]
) -> Iterator[Sequence[TraceSummary]]:
    """The last `limit` traces and then new ones, the oldest first, each once: when two looks found the same spans.

    `wait` is called between two looks.
    """
    first = reader.list_traces(wanted, LOOK).traces
    told = {trace.trace_id for trace in first[limit:]}
    counts = {trace.trace_id: trace.span_count for trace in first}
    while True:
        wait()
        traces = reader.list_traces(wanted, LOOK).traces
        untold = [trace for trace in reversed(traces) if trace.trace_id not in told]
        if ready := [trace for trace in untold if counts.get(trace.trace_id) == trace.span_count]:
            yield ready
        counts = {trace.trace_id: trace.span_count for trace in traces}
        # What has left the list needs no memory.
        told = (told | {trace.trace_id for trace in ready}) & counts.keys()


def waterfall(trace: Trace) -> RenderableType:
    """One trace: what it was, and a bar for each span over the time of the whole."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=4, no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
    for depth, span in _tree(trace.spans):
        style = _style(span)
        table.add_row(
            Text(INDENT * depth + plain(span.name), style),
            Bar(trace.summary, span.start_ns, span.end_ns, style),
            elapsed_text(span.duration_ns),
            Text(_facts(span), "red" if span.status == "error" else "dim"),
        )
        for mark, at_ns, said in _marks(span):
            place = Bar(trace.summary, at_ns, at_ns, "yellow", mark) if at_ns else ""
            table.add_row(Text(INDENT * (depth + 1) + said, "yellow"), place, "", "")
    return Group(_heading(trace.summary), "", table, *_links(trace.spans))


def _links(spans: Sequence[SpanRecord]) -> Iterator[RenderableType]:
    """Whole, since one goes on from their ids: above they are cut where the terminal is narrow."""
    linked = [(span, link) for span in spans for link in span.links]
    if linked:
        yield ""
    for span, link in linked:
        yield Text(f"{plain(span.name)} →\n{link.trace_id}", "yellow", overflow="fold")


class Bar:
    """A line as wide as its cell, with a stretch of the trace's time on it; at least one character long."""

    def __init__(
        self, trace: TraceSummary, start_ns: int, end_ns: int, style: str, mark: str = "━"
    ) -> None:
        self._trace = trace
        self._start_ns = start_ns
        self._end_ns = end_ns
        self._style = style
        self._mark = mark

    def __rich_console__(self, console: Console, options: object) -> Iterator[Text]:
        """Draw it."""
        width: int = options.max_width  # type: ignore[attr-defined]
        first = min(self._place(self._start_ns, width), width - 1)
        length = max(1, min(self._place(self._end_ns, width), width) - first)
        yield Text(" " * first + self._mark * length, self._style)

    def _place(self, at_ns: int, width: int) -> int:
        elapsed_ns = max(0, at_ns - self._trace.started_ns)
        return round(width * elapsed_ns / max(1, self._trace.duration_ns))


def _heading(summary: TraceSummary) -> Text:
    facts = [
        time_text(summary.started_ns),
        elapsed_text(summary.duration_ns),
        f"{summary.span_count} spans",
        summary.model,
        None if summary.request_id is None else f"request {summary.request_id}",
    ]
    status = summary.error_type if summary.status == "error" else None
    return Text.assemble(
        (f"{plain(summary.name)}\n", "bold"),
        (f"trace {summary.trace_id}\n", "dim"),
        plain(" · ".join(filter(None, facts))),
        " · ",
        (plain(status or summary.status), STATUS_STYLES[summary.status]),
    )


def _tree(spans: Sequence[SpanRecord]) -> Iterator[tuple[int, SpanRecord]]:
    """Each span once, below its parent, with its depth; one whose parent isn't there stands at the edge."""
    ids = {span.span_id for span in spans}
    children: defaultdict[str, list[SpanRecord]] = defaultdict(list)
    roots = []
    for span in spans:
        parent = span.parent_span_id
        if parent is not None and parent in ids:
            children[parent].append(span)
        else:
            roots.append(span)
    shown: set[str] = set()
    # Those that name each other as parents hang below no root: they come last.
    for first in (*roots, *spans):
        waiting = [(0, first)]
        while waiting:
            depth, span = waiting.pop()
            if span.span_id not in shown:
                shown.add(span.span_id)
                yield depth, span
                waiting += [(depth + 1, child) for child in reversed(children[span.span_id])]


def _marks(span: SpanRecord) -> Iterator[tuple[str, int, str]]:
    """What stands below a span: its events with their time, its links."""
    for event in span.events:
        kind = event.attributes.get("exception.type")
        yield "◆", event.at_ns, plain(f"◆ {event.name}" + (f" {kind}" if kind else ""))
    for link in span.links:
        yield "", 0, f"→ trace {link.trace_id}"


def _facts(span: SpanRecord) -> str:
    found = ((form, span.attributes.get(name)) for name, form in FACTS)
    return plain(" · ".join(_fact(form, value) for form, value in found if value is not None))


def _fact(form: str, value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    # Whoever sends us spans chooses the type.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return form.format(value) if is_number or ":" not in form else str(value)


def _style(span: SpanRecord) -> str:
    return "bold red" if span.status == "error" else KIND_STYLES.get(span.kind, "blue")
