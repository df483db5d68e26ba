"""The store keeps what it is given: in any order, twice, under a kill, beside another process, within its bounds."""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import chain, islice
from pathlib import Path

import psutil
import pytest

from mlx_manager.errors import TracesUnavailable
from mlx_manager.observability.span_record import SpanEvent, SpanLink, SpanRecord
from mlx_manager.traces import writing
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.samples import Sample
from mlx_manager.traces.schema import ADDITIONS, APPLICATION_ID, VERSION, open_for_writing
from mlx_manager.traces.store import StoreOptions, TraceStore
from mlx_manager.traces.summary import TraceFilter
from tests.support.running import wait_until
from tests.traces.records import START_NS, S, chat, put, server, span, span_id, trace_id

ALL = TraceFilter()


def test_a_span_comes_back_as_it_was(store: TraceStore) -> None:
    record = span(
        1, 1, 7, kind="client", status="error", scope="lib", resource={"service.name": "mlx-test", "n": 3},
        attributes={"text": "ü", "yes": True, "count": -(2**63), "half": 0.5, "list": ("a", "b"), "none": ()},
        events=(SpanEvent("moment", START_NS + 1, {"at": 1}), SpanEvent("other", START_NS + 2)),
        links=(SpanLink(trace_id(5), span_id(6), {"why": "waited"}),),
    )  # fmt: skip
    put(store, record)
    trace = store.get_trace(trace_id(1))
    assert trace is not None
    assert trace.spans == (record,)


def test_order_batches_and_repetition_change_nothing(tmp_path: Path) -> None:
    whole = [server(1, took_s=3), chat(1, at_s=0.5), *(span(1, n, 2, at_s=n) for n in range(3, 9))]
    shuffle = random.Random(7)
    outcomes = set()
    for attempt in range(6):
        spans = [*whole, *whole] if attempt else list(whole)
        shuffle.shuffle(spans)
        with TraceStore(tmp_path / f"{attempt}.db") as store:
            while spans:
                count = shuffle.randint(1, 4)
                put(store, *spans[:count])
                spans = spans[count:]
            trace = store.get_trace(trace_id(1))
            assert trace is not None
            assert store.list_traces(ALL).traces == (trace.summary,)
            figures = store.stats(START_NS, START_NS + 100 * S).models
            assert trace.summary.span_count == len(whole)
            outcomes.add(repr((trace, figures)))
    assert len(outcomes) == 1


def test_a_root_that_comes_last_names_the_trace(store: TraceStore) -> None:
    put(store, server(1, 1, 9, at_s=1), chat(1, at_s=1))
    put(store, span(1, 9, name="agent", service="agent", took_s=9))
    (line,) = store.list_traces(ALL).traces
    assert (line.name, line.service) == ("agent", "agent")
    assert (line.started_ns, line.duration_ns) == (START_NS, 9 * S)


def test_a_span_that_is_sent_again_replaces_itself(store: TraceStore) -> None:
    put(store, chat(1, 1, None))
    put(store, chat(1, 1, None, attributes={"gen_ai.usage.input_tokens": 99}))
    (line,) = store.list_traces(ALL).traces
    assert (line.span_count, line.input_tokens) == (1, 99)
    (model,) = store.stats(START_NS, START_NS + S).models
    assert (model.requests, model.input_tokens) == (1, 99)


def test_a_trace_takes_only_so_many_spans(store: TraceStore) -> None:
    spans = (span(1, number) for number in range(1, writing.MOST_SPANS + 6))
    while batch := list(islice(spans, 2000)):
        put(store, *batch)
    trace = store.get_trace(trace_id(1))
    assert trace is not None
    assert len(trace.spans) == writing.MOST_SPANS
    wait_until(lambda: store.dropped == 5)


def test_a_batch_of_many_traces_takes_few_statements(tmp_path: Path) -> None:
    """Each of them waits for the interpreter: beside a busy event loop many take longer than the batch took to come."""
    traces = range(1, 2 * writing.ROWS_AT_ONCE)
    wholes = [
        (server(trace), chat(trace, attributes={"gen_ai.output.messages": f"[{trace}]"}))
        for trace in traces
    ]
    statements: list[str] = []
    with closing(open_for_writing(tmp_path / "traces.db")) as connection:
        writing.store_records(connection, wholes[0][:1], now_ns=1)
        connection.set_trace_callback(statements.append)
        writing.store_records(connection, chain.from_iterable(wholes), now_ns=2)
    assert len(statements) < 30
    with TraceReader(tmp_path / "traces.db") as reader:
        for trace, whole in zip(traces, wholes, strict=True):
            found = reader.get_trace(trace_id(trace))
            assert found is not None
            assert (found.spans, found.summary.span_count) == (whole, 2)


def test_batches_of_every_size_leave_little_in_memory(tmp_path: Path) -> None:
    """Each size has statements of its own, and SQLite keeps some of them ready."""
    process, grown = psutil.Process(), list[int]()
    with closing(open_for_writing(tmp_path / "traces.db")) as connection:
        for trace, spans in enumerate([240, 240, *range(1, 240, 2)], start=1):
            batch = [server(trace), *(span(trace, n, 1) for n in range(2, spans + 2))]
            writing.store_records(connection, batch, now_ns=trace)
            grown.append(process.memory_info().rss)
    assert grown[-1] - grown[1] < 8 * 2**20


def test_what_the_queue_can_not_hold_is_dropped_and_counted(tmp_path: Path) -> None:
    is_free = threading.Event()

    def slow() -> SpanRecord:
        is_free.wait(30)
        return span(1, 1)

    options = StoreOptions(capacity=10, batch=1)
    with TraceStore(tmp_path / "traces.db", options) as store:
        store.put(slow)
        wait_until(lambda: store.has_room_for_others)
        taken = [store.put(lambda number=number: span(2, number)) for number in range(1, 31)]  # type: ignore[misc]
        assert store.has_room_for_others is False
        is_free.set()
        assert store.flush(30)
        assert store.dropped == taken.count(False) > 0
        trace = store.get_trace(trace_id(2))
    assert trace is not None
    assert len(trace.spans) == taken.count(True)


def test_a_span_that_can_not_be_read_costs_only_itself(
    store: TraceStore, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> SpanRecord:
        raise ValueError("marked-secret")

    store.put(broken)
    put(store, span(1, 1))
    assert store.get_trace(trace_id(1)) is not None
    assert store.dropped == 1
    assert "ValueError" in caplog.text
    assert "marked-secret" not in caplog.text


def test_spans_come_later_where_another_process_has_locked_the_file(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db", StoreOptions(linger_s=0)) as store:
        with closing(sqlite3.connect(tmp_path / "traces.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            store.put(lambda: span(1, 1))
            assert store.flush(0.1) is False
            assert store.get_trace(trace_id(1)) is None, "reading goes on"
            other.execute("ROLLBACK")
        assert store.flush(30)
        assert store.get_trace(trace_id(1)) is not None
        assert store.dropped == 0


def test_spans_that_a_full_disk_has_no_room_for_are_counted_and_later_ones_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite itself says that the disk is full where a file has all the pages that it may have."""
    with TraceStore(tmp_path / "traces.db", StoreOptions(linger_s=0)) as store:
        # Behind the first sweep, which its thread makes with the same connection.
        put(store, span(3, 1))
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        put(store, *(span(1, n, attributes={"text": "x" * 4000}) for n in range(1, 30)))
        assert store.dropped == 29
        assert store.get_trace(trace_id(1)) is None
        assert "SQLITE_FULL" in caplog.text
        store._connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
        put(store, span(2, 1))
        assert store.get_trace(trace_id(2)) is not None
        assert store.dropped == 29


def test_closing_writes_what_waits_and_takes_no_more(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.db", StoreOptions(linger_s=60))
    store.put(lambda: span(1, 1))
    assert store.close(30)
    assert store.put(lambda: span(1, 2)) is False
    with TraceReader(tmp_path / "traces.db") as reader:
        trace = reader.get_trace(trace_id(1))
    assert trace is not None
    assert len(trace.spans) == 1


def test_the_file_is_for_its_owner_alone(store: TraceStore) -> None:
    put(store, span(1, 1))
    files = list(store.path.parent.glob("traces.db*"))
    assert {file.name for file in files} >= {"traces.db", "traces.db-wal"}
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}


# In another process: spans of one trace after the other, and the number of each once it is stored.
WRITER = """
import sys
from pathlib import Path
from mlx_manager.traces.store import StoreOptions, TraceStore
from tests.traces.records import put, chat, server

store = TraceStore(Path(sys.argv[1]), StoreOptions(linger_s=0.01))
first, count = int(sys.argv[2]), int(sys.argv[3])
for number in range(first, first + count):
    put(store, server(number, at_s=number), chat(number, at_s=number))
    print(number, flush=True)
store.close(30)
"""


def writer(path: Path, first: int, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first), str(count)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_a_killed_process_loses_no_batch_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    with writer(path, 1, 1_000_000) as process:
        assert process.stdout is not None
        stored = [int(line) for line in islice(process.stdout, 40)]
        process.send_signal(signal.SIGKILL)
        stored += [int(line) for line in process.stdout]
    assert process.returncode == -signal.SIGKILL
    with TraceStore(path) as store:
        for number in stored:
            trace = store.get_trace(trace_id(number))
            assert trace is not None
            assert len(trace.spans) == 2
        put(store, span(9_000_000, 1))
        assert store.get_trace(trace_id(9_000_000)) is not None
    assert not list(tmp_path.glob("*.broken*"))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# The same at its ease: nobody waits for a span to be stored, and each is told of once it was handed over.
STEADY_WRITER = """
import sys
import time
from pathlib import Path
from mlx_manager.traces.store import StoreOptions, TraceStore
from tests.traces.records import server

store = TraceStore(Path(sys.argv[1]), StoreOptions(batch=int(sys.argv[2])))
for number in range(1, 1_000_000):
    assert store.put(lambda number=number: server(number, at_s=number))
    print(number, flush=True)
    time.sleep(0.005)
"""
BATCH = 100


@pytest.mark.parametrize("written", [BATCH * 2, BATCH * 4 + 17])
def test_a_killed_process_loses_its_last_batch_at_most(tmp_path: Path, written: int) -> None:
    path = tmp_path / "traces.db"
    with subprocess.Popen(
        [sys.executable, "-c", STEADY_WRITER, str(path), str(BATCH)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None
        told = [int(line) for line in islice(process.stdout, written)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout]
    assert process.returncode == -signal.SIGKILL
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with TraceStore(path) as store:
        stored = [number for number in told if store.get_trace(trace_id(number))]
    assert len(stored) >= told[-1] - BATCH
    assert stored == told[: len(stored)], "what is lost is the end, without a gap"
    assert not list(tmp_path.glob("*.broken*"))


def test_two_processes_write_one_file_while_a_third_reads(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    with writer(path, 1, 60) as one, writer(path, 30, 60) as other:
        wait_until(path.exists)
        with TraceStore(path) as store:
            while one.poll() is None or other.poll() is None:
                assert all(line.span_count == 2 for line in store.list_traces(ALL, 500).traces)
            lines = store.list_traces(ALL, 500).traces
            (model,) = store.stats(START_NS, START_NS + 1000 * S).models
    assert (one.returncode, other.returncode) == (0, 0)
    assert [line.trace_id for line in lines] == [trace_id(number) for number in range(89, 0, -1)]
    assert model.requests == 89


def fill(store: TraceStore, first: int, count: int) -> None:
    text = "x" * 1000
    for number in range(first, first + count):
        put(store, *(span(number, n, attributes={"text": text}) for n in range(1, 21)))


def test_the_oldest_make_room_and_the_file_gets_smaller(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    with TraceStore(path) as store:
        fill(store, 1, 200)
    full = path.stat().st_size
    limit = full // 4
    with TraceStore(path, StoreOptions(max_bytes=limit, retention_every_s=0.05)) as store:
        wait_until(lambda: path.stat().st_size < limit)
        lines = store.list_traces(ALL, 500).traces
        kept = [int(line.trace_id, 16) for line in lines]
        assert kept == list(range(200, 200 - len(kept), -1))
        assert 20 < len(kept) < 60
        assert store.stats(START_NS, START_NS + S).models == ()
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT count(*), count(DISTINCT trace) FROM spans")
            assert rows.fetchone() == (20 * len(kept), len(kept))


def test_what_is_too_old_goes_while_the_store_runs(tmp_path: Path) -> None:
    now_ns = [START_NS]
    options = StoreOptions(max_age_s=60, retention_every_s=0.05)
    with TraceStore(tmp_path / "traces.db", options, clock_ns=lambda: now_ns[0]) as store:
        put(store, server(1), chat(1), span(1, 3, resource={"old": 1}))
        now_ns[0] += 40 * S
        put(store, server(2), chat(2))
        now_ns[0] += 30 * S
        wait_until(lambda: store.get_trace(trace_id(1)) is None)
        assert [line.trace_id for line in store.list_traces(ALL).traces] == [trace_id(2)]
        (model,) = store.stats(START_NS, START_NS + S).models
        assert model.requests == 1
    with closing(sqlite3.connect(tmp_path / "traces.db")) as connection:
        assert connection.execute("SELECT count(*) FROM origins").fetchone() == (1,)


@pytest.mark.parametrize(
    "content", [b"this is no database" * 500, b"SQLite format 3\x00" + b"x" * 5000]
)
def test_a_damaged_file_is_moved_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "traces.db"
    path.write_bytes(content)
    with TraceStore(path) as store:
        put(store, span(1, 1))
        assert store.get_trace(trace_id(1)) is not None
    (aside,) = tmp_path.glob("traces.db.broken-*")
    assert aside.read_bytes() == content
    assert str(aside) in caplog.text


def test_a_file_that_is_damaged_while_it_is_in_use_is_moved_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "traces.db"
    with TraceStore(path) as store:
        fill(store, 1, 20)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            # Another's write has the store forget what it remembers of the file.
            other.execute(f"PRAGMA user_version = {VERSION}")
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\x5a" * (size - 4096))
        put(store, span(500, 1))
        wait_until(lambda: bool(list(tmp_path.glob("traces.db.broken-*"))))
        put(store, span(501, 1))
        assert store.get_trace(trace_id(501)) is not None
        assert store.dropped == 1
    assert "damaged" in caplog.text


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    TraceStore(path).close(30)
    change(path, f"PRAGMA user_version = {VERSION + 1}")
    before = path.read_bytes()
    for open_it in (TraceStore, lambda path: TraceReader(path).models()):
        with pytest.raises(TracesUnavailable, match="newer MLX Manager"):
            open_it(path)
    assert path.read_bytes() == before


def test_an_older_file_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    change(path, "CREATE TABLE spans (something)")
    change(path, f"PRAGMA application_id = {APPLICATION_ID}")
    change(path, f"PRAGMA user_version = {min(ADDITIONS) - 1}")
    with TraceStore(path) as store:
        put(store, span(1, 1))
        assert store.get_trace(trace_id(1)) is not None


@pytest.mark.parametrize("version", ADDITIONS)
def test_a_file_that_only_lacks_an_addition_keeps_its_traces(tmp_path: Path, version: int) -> None:
    path = tmp_path / "traces.db"
    with TraceStore(path) as store:
        put(store, span(1, 1))
    for later, added in ADDITIONS.items():
        if later >= version:
            (kind, name) = re.findall(r"CREATE (TABLE|INDEX) (\w+)", added)[0]
            change(path, f"DROP {kind} {name}")
    change(path, f"PRAGMA user_version = {version}")
    with TraceStore(path, clock_ns=lambda: START_NS) as store:
        assert store.get_trace(trace_id(1)) is not None
        assert store.put_sample(Sample(START_NS, 1, "m", waiting_peak=3))
        assert store.flush(30)
        (column,) = store.gauges(START_NS, START_NS + S, buckets=1).buckets
        assert column.waiting_peak == 3


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.db"
    change(path, "CREATE TABLE mine (something)")
    with pytest.raises(TracesUnavailable, match="something else"):
        TraceStore(path)
    change(path, "INSERT INTO mine VALUES (1)")


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: path.parent.joinpath("x").touch()]
)
def test_a_place_that_can_not_be_written_is_named(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "traces.db"
    make(path)
    wanted = path if path.exists() else tmp_path / "x" / "traces.db"
    with pytest.raises(TracesUnavailable, match=r"traces\.db"):
        TraceStore(wanted)
