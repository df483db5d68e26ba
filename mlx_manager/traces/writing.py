"""Put spans into the store's file: any order, any number of times, the same result."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Any, TypeVar

from mlx_manager.observability.span_record import SpanRecord
from mlx_manager.traces.inbox import Record
from mlx_manager.traces.rows import (
    CONTENT_COLUMNS,
    REQUEST_COLUMNS,
    SPAN_COLUMNS,
    SUMMARY_COLUMNS,
    Origin,
    from_span_row,
    has_content,
    origin_of,
    to_content_row,
    to_span_row,
    to_summary_row,
    with_content,
)
from mlx_manager.traces.samples import Sample, store_samples
from mlx_manager.traces.schema import transaction
from mlx_manager.traces.summarise import model_requests, summarise

_Row = tuple[Any, ...]
_T = TypeVar("_T")

# A trace is summed up anew from all its spans whenever one arrives: that has to end somewhere.
MOST_SPANS = 10_000
# Each statement gives the interpreter to other threads and waits for it again, beside a busy event loop for up to 5 ms:
# so it takes many rows. Older builds of SQLite allow 32,766 values in one.
ROWS_AT_ONCE = 250

TRACE_COLUMNS = ("id", "stored_ns", *SUMMARY_COLUMNS)
# The time of its first coming stays.
KEEP_STORED = " ON CONFLICT (id) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in SUMMARY_COLUMNS
)
# Its time stays that of its first coming, or who sends it again and again keeps it for ever.
KEEP_FIRST_TIME = " ON CONFLICT (trace, span_id) DO UPDATE SET attributes = excluded.attributes"
SELECT_CONTENTS = "SELECT span_id, attributes FROM contents WHERE trace = ?"
SELECT_SPANS = f"SELECT {', '.join(SPAN_COLUMNS)} FROM spans WHERE trace = ?"
SELECT_ORIGINS = (
    "SELECT id, service, scope, resource FROM origins"
    " WHERE id IN (SELECT DISTINCT origin FROM spans WHERE trace = ?)"
)
UPSERT_ORIGIN = """
INSERT INTO origins (digest, service, scope, resource, last_trace) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (digest) DO UPDATE SET last_trace = max(last_trace, excluded.last_trace) RETURNING id
"""
KEEP_ORIGIN = "UPDATE origins SET last_trace = max(last_trace, ?) WHERE id = ?"


def store_records(connection: sqlite3.Connection, records: Iterable[Record], now_ns: int) -> int:
    """Store all or, when it raises, none of `records`; return how many spans found no room in their trace any more."""
    traces: defaultdict[str, dict[str, SpanRecord]] = defaultdict(dict)
    samples: list[Sample] = []
    for record in records:
        if isinstance(record, Sample):
            samples.append(record)
        else:
            traces[record.trace_id][record.span_id] = record
    with transaction(connection):
        store_samples(connection, samples)
        return _Batch(connection, now_ns).store(traces)


def read_spans(connection: sqlite3.Connection, trace: int, trace_id: str) -> list[SpanRecord]:
    """All spans of the trace in row `trace`, in the order of their ids; without what was said."""
    origins = {
        number: Origin(*origin)
        for number, *origin in connection.execute(SELECT_ORIGINS, [trace]).fetchall()
    }
    rows = connection.execute(SELECT_SPANS, [trace]).fetchall()
    return [from_span_row(trace_id, row, origins) for row in rows]


def read_whole_spans(connection: sqlite3.Connection, trace: int, trace_id: str) -> list[SpanRecord]:
    """The same with what was said, as far as it is still kept."""
    contents = dict(connection.execute(SELECT_CONTENTS, [trace]).fetchall())
    return [
        with_content(span, contents.get(bytes.fromhex(span.span_id)))
        for span in read_spans(connection, trace, trace_id)
    ]


class _Batch:
    """One transaction's work: what is to be written is gathered, and then written a table at a time."""

    def __init__(self, connection: sqlite3.Connection, now_ns: int) -> None:
        self._connection = connection
        self._now_ns = now_ns
        # By what of spans is the same object: encoding the resource of each would cost more than writing the span.
        self._known: dict[tuple[str, str, int], int] = {}
        self._numbers: dict[Origin, int] = {}
        self._last_traces: dict[int, int] = {}
        self._traces: list[_Row] = []
        self._spans: list[_Row] = []
        self._contents: list[_Row] = []
        self._silent: list[_Row] = []
        self._requests: list[_Row] = []

    def store(self, traces: Mapping[str, dict[str, SpanRecord]]) -> int:
        """Store the spans of each trace; return how many were too many."""
        numbers = self._trace_numbers(traces)
        surplus = 0
        (last,) = self._connection.execute("SELECT ifnull(max(id), 0) FROM traces").fetchone()
        for trace_id, found in traces.items():
            if (number := numbers.get(trace_id)) is not None:
                known = read_spans(self._connection, number, trace_id)
            else:
                number, known = (last := last + 1), []
            surplus += self._gather(number, trace_id, found, known)
        self._write(numbers.values())
        return surplus

    def _trace_numbers(self, trace_ids: Iterable[str]) -> dict[str, int]:
        """The numbers of those that are stored already."""
        found: dict[str, int] = {}
        for ids in _in_slices([bytes.fromhex(trace_id) for trace_id in trace_ids]):
            rows = self._connection.execute(
                f"SELECT trace_id, id FROM traces WHERE trace_id IN ({_places(len(ids))})", ids
            )
            found.update((trace_id.hex(), number) for trace_id, number in rows.fetchall())
        return found

    def _gather(
        self, trace: int, trace_id: str, found: dict[str, SpanRecord], known: list[SpanRecord]
    ) -> int:
        by_id = {span.span_id: span for span in known}
        kept = _with_room(found, by_id.keys())
        whole = list((by_id | kept).values())
        self._traces.append((trace, self._now_ns, *to_summary_row(summarise(trace_id, whole))))
        self._spans += [
            (trace, *to_span_row(span, self._origin(span, trace))) for span in kept.values()
        ]
        self._gather_contents(trace, kept.values(), by_id.keys())
        self._requests += [
            (trace, number, *(getattr(request, name) for name in REQUEST_COLUMNS))
            for number, request in enumerate(model_requests(whole))
        ]
        return len(found) - len(kept)

    def _gather_contents(self, trace: int, spans: Iterable[SpanRecord], known: Set[str]) -> None:
        """What a span says last is all that it says: one that comes again in silence has said nothing."""
        for span in spans:
            if has_content(span):
                self._contents.append((trace, self._now_ns, *to_content_row(span)))
            elif span.span_id in known:
                self._silent.append((trace, bytes.fromhex(span.span_id)))

    def _write(self, again: Iterable[int]) -> None:
        """Write what was gathered; the traces of `again` were stored before."""
        self._insert("INSERT INTO traces", TRACE_COLUMNS, self._traces, KEEP_STORED)
        # A span that is sent twice stays one: the key is its trace and its id.
        self._insert("REPLACE INTO spans", ("trace", *SPAN_COLUMNS), self._spans)
        columns = ("trace", "stored_ns", *CONTENT_COLUMNS)
        self._insert("INSERT INTO contents", columns, self._contents, KEEP_FIRST_TIME)
        self._delete("contents", "(trace, span_id)", self._silent)
        self._delete("requests", "(trace)", [(trace,) for trace in again])
        self._insert("INSERT INTO requests", ("trace", "number", *REQUEST_COLUMNS), self._requests)
        # An origin goes when the last of its traces has gone.
        last = [(trace, number) for number, trace in self._last_traces.items()]
        self._connection.executemany(KEEP_ORIGIN, last)

    def _insert(self, into: str, columns: Sequence[str], rows: list[_Row], tail: str = "") -> None:
        for some in _in_slices(rows):
            statement = f"{into} ({', '.join(columns)}) {_values(some)}{tail}"
            self._connection.execute(statement, list(chain.from_iterable(some)))

    def _delete(self, table: str, key: str, rows: list[_Row]) -> None:
        for some in _in_slices(rows):
            statement = f"DELETE FROM {table} WHERE {key} IN ({_values(some)})"
            self._connection.execute(statement, list(chain.from_iterable(some)))

    def _origin(self, span: SpanRecord, trace: int) -> int:
        key = (span.service, span.scope, id(span.resource))
        if (number := self._known.get(key)) is None:
            number = self._known[key] = self._number_of(origin_of(span), trace)
        self._last_traces[number] = max(trace, self._last_traces.get(number, 0))
        return number

    def _number_of(self, origin: Origin, trace: int) -> int:
        if (number := self._numbers.get(origin)) is None:
            values = (origin.digest, *origin, trace)
            (number,) = self._connection.execute(UPSERT_ORIGIN, values).fetchone()
            self._numbers[origin] = int(number)
        return int(number)


def _in_slices(rows: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]


def _places(count: int) -> str:
    return ", ".join("?" * count)


def _values(rows: Sequence[_Row]) -> str:
    row = f"({_places(len(rows[0]))})"
    return f"VALUES {', '.join([row] * len(rows))}"


def _with_room(found: dict[str, SpanRecord], known: Set[str]) -> dict[str, SpanRecord]:
    room = MOST_SPANS - len(known)
    kept = {}
    for span_id, span in found.items():
        if span_id in known:
            kept[span_id] = span
        elif room > 0:
            kept[span_id] = span
            room -= 1
    return kept
