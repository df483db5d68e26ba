"""How fast the trace store answers with a million spans in it: `python -m benchmarks.traces`."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from mlx_manager.observability.span_record import Attributes, SpanRecord
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.schema import open_for_writing
from mlx_manager.traces.summary import TraceFilter
from mlx_manager.traces.writing import store_records

NS_PER_S = 1_000_000_000
DAY_NS = 86_400 * NS_PER_S
SPANS_PER_TRACE = 7
TRACES_PER_BATCH = 140
DAYS = 7
MODELS = [f"organisation/model-{number}" for number in range(6)]
PHASES = ("tokenize", "queue", "prefill", "decode")
RUNS = 7
RESOURCE: Attributes = {"service.name": "mlx-manager", "service.instance.id": "7f" * 16}

Ask = Callable[[TraceReader], object]


def main() -> int:
    """Build the file, ask, print."""
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
            console.print(_measured(reader))
    return 0


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
    """One request over HTTP with its phases; one in a hundred fails."""
    trace_id = f"{numbers.getrandbits(128):032x}"
    start_ns = now_ns - DAYS * DAY_NS + number * DAYS * DAY_NS // of
    took_ns = int(numbers.lognormvariate(0, 1) * NS_PER_S)
    has_failed = number % 100 == 0
    ids = [f"{numbers.getrandbits(64):016x}" for _ in range(SPANS_PER_TRACE)]

    def span(place: int, parent: int | None, name: str, **attributes: object) -> SpanRecord:
        named = {key.replace("__", "."): value for key, value in attributes.items()}
        return SpanRecord(
            trace_id=trace_id,
            span_id=ids[place],
            parent_span_id=None if parent is None else ids[parent],
            name=name,
            kind="server" if parent is None else "internal",
            start_ns=start_ns + place * 1000,
            end_ns=start_ns + took_ns - place * 1000,
            status="error" if has_failed and place < 2 else "unset",
            service="mlx-manager",
            scope="mlx_manager",
            attributes=named,  # type: ignore[arg-type]
            resource=RESOURCE,
        )

    model = numbers.choice(MODELS)
    request_id = f"{numbers.getrandbits(128):032x}"
    yield span(
        0,
        None,
        "POST /v1/chat/completions",
        http__route="/v1/chat/completions",
        http__request__method="POST",
        http__response__status_code=500 if has_failed else 200,
        mlx__request__id=request_id,
    )
    chat: dict[str, object] = {
        "gen_ai__operation__name": "chat",
        "gen_ai__provider__name": "mlx",
        "gen_ai__request__model": model,
        "gen_ai__conversation__id": f"session-{number % 5000}",
        "gen_ai__usage__input_tokens": numbers.randrange(10, 4000),
        "gen_ai__usage__output_tokens": numbers.randrange(1, 1000),
        "mlx__backend": "local",
        "mlx__request__id": request_id,
        "mlx__time_to_first_token_s": took_ns / 4e9,
        "mlx__time_per_output_token_s": took_ns / 1e12,
        "mlx__queue_s": took_ns / 1e11,
    }
    yield span(1, 0, f"chat {model}", **chat)
    for place, phase in enumerate(PHASES, start=2):
        yield span(place, 1, phase, mlx__batch__width_max=number % 32, mlx__prefill__tokens=number)
    yield span(6, 0, "SELECT", db__system__name="sqlite", db__query__text="SELECT * FROM models")


def _questions(reader: TraceReader) -> Iterator[tuple[str, float, Ask]]:
    """What is asked, and in how many milliseconds it should be answered."""
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
    for days in (1, DAYS):
        since_ns = now_ns - days * DAY_NS
        figures = partial(TraceReader.stats, since_ns=since_ns, until_ns=now_ns)
        yield f"percentiles by model, {days} d", 300, figures
    yield "names of models", 50, TraceReader.models


def _measured(reader: TraceReader) -> Table:
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
        mark = "" if median < goal_ms else "  over"
        fastest = min(times_ms)
        table.add_row(
            name, f"{fastest:.2f}", f"{median:.2f}", f"{max(times_ms):.2f}", f"{goal_ms:g}{mark}"
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
