"""Put spans into the store's file: any order, any number of times, the same result."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from typing import Any

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

# A trace is summed up anew from all its spans whenever one arrives: that has to end somewhere.
MOST_SPANS = 10_000


def _insert(table: str, columns: Iterable[str], verb: str = "INSERT") -> str:
    listed = list(columns)
    return f"{verb} INTO {table} ({', '.join(listed)}) VALUES ({', '.join('?' * len(listed))})"


INSERT_TRACE = _insert("traces", ("stored_ns", *SUMMARY_COLUMNS))
UPDATE_TRACE = f"UPDATE traces SET {', '.join(f'{name} = ?' for name in SUMMARY_COLUMNS)} WHERE id = ?"  # fmt: skip
# A span that is sent twice stays one: the key is its trace and its id.
REPLACE_SPAN = _insert("spans", ("trace", *SPAN_COLUMNS), "REPLACE")
INSERT_REQUEST = _insert("requests", ("trace", "number", *REQUEST_COLUMNS))
# Its time stays that of its first coming, or who sends it again and again keeps it for ever.
UPSERT_CONTENT = (
    _insert("contents", ("trace", "stored_ns", *CONTENT_COLUMNS))
    + " ON CONFLICT (trace, span_id) DO UPDATE SET attributes = excluded.attributes"
)
DELETE_CONTENT = "DELETE FROM contents WHERE trace = ? AND span_id = ?"
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
        batch = _Batch(connection, now_ns)
        surplus = sum(batch.store(trace_id, found) for trace_id, found in traces.items())
        batch.keep_origins()
        return surplus


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
    """One transaction's work."""

    def __init__(self, connection: sqlite3.Connection, now_ns: int) -> None:
        self._connection = connection
        self._now_ns = now_ns
        # By what of spans is the same object: encoding the resource of each would cost more than writing the span.
        self._known: dict[tuple[str, str, int], int] = {}
        self._numbers: dict[Origin, int] = {}
        self._last_traces: dict[int, int] = {}

    def store(self, trace_id: str, found: dict[str, SpanRecord]) -> int:
        """Store one trace's spans; return how many were too many."""
        row = self._connection.execute(
            "SELECT id FROM traces WHERE trace_id = ?", [bytes.fromhex(trace_id)]
        ).fetchone()
        known = read_spans(self._connection, row[0], trace_id) if row else []
        by_id = {span.span_id: span for span in known}
        kept = _with_room(found, by_id.keys())
        whole = list((by_id | kept).values())
        summary = to_summary_row(summarise(trace_id, whole))
        trace = self._update(row[0], summary) if row else self._insert(summary)
        self._connection.executemany(
            REPLACE_SPAN,
            [(trace, *to_span_row(span, self._origin(span, trace))) for span in kept.values()],
        )
        self._write_contents(trace, kept.values(), by_id.keys())
        self._write_requests(trace, whole)
        return len(found) - len(kept)

    def keep_origins(self) -> None:
        """Note which trace was the last of each origin: it goes when that has gone."""
        last = [(trace, number) for number, trace in self._last_traces.items()]
        self._connection.executemany(KEEP_ORIGIN, last)

    def _insert(self, summary: tuple[Any, ...]) -> int:
        trace = self._connection.execute(INSERT_TRACE, (self._now_ns, *summary)).lastrowid
        assert trace is not None
        return trace

    def _update(self, trace: int, summary: tuple[Any, ...]) -> int:
        self._connection.execute(UPDATE_TRACE, (*summary, trace))
        self._connection.execute("DELETE FROM requests WHERE trace = ?", [trace])
        return trace

    def _write_contents(self, trace: int, spans: Iterable[SpanRecord], known: Set[str]) -> None:
        """What a span says last is all that it says: one that comes again in silence has said nothing."""
        said = [span for span in spans if has_content(span)]
        silent = [span for span in spans if span.span_id in known and not has_content(span)]
        self._connection.executemany(
            UPSERT_CONTENT, [(trace, self._now_ns, *to_content_row(span)) for span in said]
        )
        self._connection.executemany(
            DELETE_CONTENT, [(trace, bytes.fromhex(span.span_id)) for span in silent]
        )

    def _write_requests(self, trace: int, spans: Sequence[SpanRecord]) -> None:
        requests = model_requests(spans)
        self._connection.executemany(
            INSERT_REQUEST,
            [
                (trace, number, *(getattr(request, name) for name in REQUEST_COLUMNS))
                for number, request in enumerate(requests)
            ],
        )

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
