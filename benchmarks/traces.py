"""How fast the trace store answers with a million spans in it: `python -m benchmarks.traces`."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from mlx_manager.observability import attributes as names
from mlx_manager.observability.otlp_import import read_spans
from mlx_manager.observability.span_record import Attributes, SpanRecord
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.schema import open_for_writing
from mlx_manager.traces.summary import TraceFilter
from mlx_manager.traces.writing import store_records

NS_PER_S = 1_000_000_000
DAY_NS = 86_400 * NS_PER_S
ROOT = Path(__file__).parents[1]
# A request whose spans have all that they have in a server. Its own is the first span, and its chat the second.
TEMPLATE = read_spans(
    (ROOT / "tests/traces/recorded/prefix_hit.json").read_bytes(), is_json=True
).spans
SPANS_PER_TRACE = len(TEMPLATE)
TRACES_PER_BATCH = 140
DAYS = 7
MODELS = [f"organisation/model-{number}" for number in range(6)]
RUNS = 7

Ask = Callable[[TraceReader], object]


def main() -> int:
    """Build the file, ask, print; 1 when an answer took longer than it should."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traces", description=__doc__)
    parser.add_argument("--spans", type=int, default=1_000_000)
    parser.add_argument("--file", type=Path, help="build it there, or use the one that is there")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="mlx-manager-traces-") as folder:
        path = options.file or Path(folder) / "traces.db"
        if not path.exists():
            console.print(build(path, options.spans // SPANS_PER_TRACE))
        with TraceReader(path) as reader:
            table, are_met = _measured(reader)
    console.print(table)
    return 0 if are_met else 1


def build(path: Path, traces: int) -> str:
    """Write a file of so many traces, spread over a week, and say how that went."""
    numbers = random.Random(1)
    connection = open_for_writing(path)
    now_ns = time.time_ns()
    begin_s = time.perf_counter()
    for first in range(0, traces, TRACES_PER_BATCH):
        last = min(first + TRACES_PER_BATCH, traces)
        spans = [span for n in range(first, last) for span in _trace(numbers, n, traces, now_ns)]
        store_records(connection, spans, now_ns)
    elapsed_s = time.perf_counter() - begin_s
    connection.close()
    spans_total, size = traces * SPANS_PER_TRACE, path.stat().st_size
    return (
        f"{spans_total} spans in {traces} traces: written in {elapsed_s:.0f} s, made included"
        f" ({spans_total / elapsed_s:.0f} spans/s); {size / 2**20:.0f} MiB, {size / spans_total:.0f} bytes a span"
    )


def _trace(numbers: random.Random, number: int, of: int, now_ns: int) -> Iterator[SpanRecord]:
    """One request over HTTP with its phases, as a real server has recorded it; one in a hundred fails."""
    root, chat, *_ = TEMPLATE
    took_ns = int(numbers.lognormvariate(0, 1) * NS_PER_S)
    start_ns = now_ns - DAYS * DAY_NS + number * DAYS * DAY_NS // of
    has_failed = number % 100 == 0
    slower = took_ns / (root.end_ns - root.start_ns)

    def at(moment_ns: int) -> int:
        return start_ns + round((moment_ns - root.start_ns) * slower)

    ids = {one.span_id: f"{numbers.getrandbits(64):016x}" for one in TEMPLATE}
    trace_id, request_id = f"{numbers.getrandbits(128):032x}", f"{numbers.getrandbits(128):032x}"
    model = numbers.choice(MODELS)
    told: dict[str, Attributes] = {
        root.span_id: {
            names.REQUEST_ID: request_id,
            "http.response.status_code": 500 if has_failed else 200,
        },
        chat.span_id: {
            names.REQUEST_ID: request_id,
            names.REQUEST_MODEL: model,
            names.RESPONSE_MODEL: model,
            names.CONVERSATION_ID: f"session-{number % 5000}",
            names.INPUT_TOKENS: numbers.randrange(10, 4000),
            names.OUTPUT_TOKENS: numbers.randrange(1, 1000),
            names.TIME_TO_FIRST_TOKEN_S: took_ns / 4e9,
            names.TIME_PER_OUTPUT_TOKEN_S: took_ns / 1e12,
            names.QUEUE_S: took_ns / 1e11,
        },
    }
    for one in TEMPLATE:
        yield replace(
            one,
            trace_id=trace_id,
            span_id=ids[one.span_id],
            parent_span_id=ids.get(one.parent_span_id or ""),
            name=f"chat {model}" if one is chat else one.name,
            start_ns=at(one.start_ns),
            end_ns=at(one.end_ns),
            status="error" if has_failed and one.span_id in told else one.status,
            attributes={**one.attributes, **told.get(one.span_id, {})},
        )


def _questions(reader: TraceReader) -> Iterator[tuple[str, float | None, Ask]]:
    """What is asked, and in how many milliseconds it should be answered, if that is settled."""
    first = reader.list_traces(TraceFilter(), 50)
    newest = first.traces[0]
    now_ns = newest.started_ns + 1
    rare = TraceFilter(min_duration_s=30)
    filters = {
        "a model": TraceFilter(model=MODELS[2]),
        "errors": TraceFilter(status="error"),
        "errors of a model": TraceFilter(status="error", model=MODELS[2]),
        "a session": TraceFilter(session="session-77"),
        "slow ones, few of them": rare,
        "many tokens, few of them": TraceFilter(min_tokens=4990),
        "a day long ago": TraceFilter(until_ns=now_ns - 5 * DAY_NS),
        "no such model": TraceFilter(model="none"),
        "no such text": TraceFilter(text="no such thing"),
        "a request id": TraceFilter(text=newest.request_id),
    }
    yield "page: newest 50", 50, partial(TraceReader.list_traces, wanted=TraceFilter())
    second = partial(TraceReader.list_traces, wanted=TraceFilter(), cursor=first.next_cursor)
    yield "page: the second", 50, second
    for name, wanted in filters.items():
        yield f"page: {name}", 50, partial(TraceReader.list_traces, wanted=wanted)
    yield "one trace", 10, partial(TraceReader.get_trace, trace_id=newest.trace_id)
    for days, goal_ms in ((1, 300), (DAYS, None)):
        since_ns = now_ns - days * DAY_NS
        figures = partial(TraceReader.stats, since_ns=since_ns, until_ns=now_ns)
        yield f"percentiles by model, {days} d", goal_ms, figures
    yield "names of models", 50, TraceReader.models


def _measured(reader: TraceReader) -> tuple[Table, bool]:
    are_met = True
    table = Table(
        Column("Question", no_wrap=True), "fastest ms", "median ms", "slowest ms", "goal ms"
    )
    for name, goal_ms, ask in _questions(reader):
        times_ms = []
        for _ in range(RUNS):
            begin_s = time.perf_counter()
            ask(reader)
            times_ms.append((time.perf_counter() - begin_s) * 1e3)
        median = statistics.median(times_ms)
        is_met = goal_ms is None or median < goal_ms
        are_met = are_met and is_met
        goal = "" if goal_ms is None else f"{goal_ms:g}{'' if is_met else '  over'}"
        measured = (min(times_ms), median, max(times_ms))
        table.add_row(name, *(f"{time_ms:.2f}" for time_ms in measured), goal)
    return table, are_met


if __name__ == "__main__":
    sys.exit(main())
