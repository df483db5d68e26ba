"""Queries for traces: a page of the list, one trace, the names there are."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from typing import Any

from mlx_manager.errors import InvalidQuery
from mlx_manager.traces.rows import SUMMARY_COLUMNS, from_summary_row
from mlx_manager.traces.summary import Trace, TraceFilter, TracePage
from mlx_manager.traces.writing import read_whole_spans

COLUMNS = ", ".join(SUMMARY_COLUMNS)
HEX = re.compile(r"[0-9a-f]+")
CURSOR = re.compile(r"([0-7][0-9a-f]{15})-([0-9a-f]{1,15})")

# The inner query can mostly be answered from an index, so that a rare match costs no walk through the whole table.
SELECT_PAGE = f"""
SELECT {COLUMNS}, id FROM traces WHERE id IN (
    SELECT id FROM traces WHERE {{conditions}} ORDER BY started_ns DESC, id DESC LIMIT ?
) ORDER BY started_ns DESC, id DESC
"""
# From one name to the next in the index, instead of over all rows.
SELECT_MODELS = """
WITH RECURSIVE found (model) AS (
    SELECT min(model) FROM traces WHERE model IS NOT NULL
    UNION ALL
    SELECT (SELECT min(model) FROM traces WHERE model > found.model) FROM found WHERE found.model IS NOT NULL
)
SELECT model FROM found WHERE model IS NOT NULL
"""

# Ids have indexes of their own; names and models stand in the index that is walked when any of them has the text.
TEXT_IN_ID = """
id IN (
    SELECT id FROM traces WHERE trace_id BETWEEN ? AND ?
    UNION ALL SELECT id FROM traces WHERE request_id BETWEEN ? AND ?
)
"""
TEXT_ANYWHERE = f"(name LIKE ? ESCAPE '\\' OR model LIKE ? ESCAPE '\\' OR {TEXT_IN_ID})"
# Names and models are few, mostly: an id is soon known to be in none of them. With more than this many, nobody looks.
MOST_WORDS = 1000
COUNT_WORDS = """
WITH RECURSIVE found (word) AS (
    SELECT min({column}) FROM traces WHERE {column} IS NOT NULL
    UNION ALL
    SELECT (SELECT min({column}) FROM traces WHERE {column} > found.word) FROM found WHERE found.word IS NOT NULL
    LIMIT ?
)
SELECT count(word), total(word LIKE ? ESCAPE '\\') FROM found
"""
LAST_CHARACTER = "\U0010ffff"

Condition = tuple[str, list[Any]]


def list_traces(
    connection: sqlite3.Connection, wanted: TraceFilter, limit: int, cursor: str | None
) -> TracePage:
    """See `TraceReader.list_traces`."""
    conditions = [*_conditions(wanted), *_has_text(connection, wanted.text), *_below(cursor)]
    where = " AND ".join(condition for condition, _ in conditions) or "TRUE"
    values = [value for _, found in conditions for value in found]
    rows = connection.execute(SELECT_PAGE.format(conditions=where), [*values, limit + 1]).fetchall()
    traces = tuple(from_summary_row(row[:-1]) for row in rows[:limit])
    if len(rows) <= limit:
        return TracePage(traces)
    return TracePage(traces, f"{traces[-1].started_ns:016x}-{rows[limit - 1][-1]:x}")


def get_trace(connection: sqlite3.Connection, trace_id: str) -> Trace | None:
    """See `TraceReader.get_trace`."""
    if len(trace_id) != 32 or not HEX.fullmatch(trace_id):
        return None
    row = connection.execute(
        f"SELECT {COLUMNS}, id FROM traces WHERE trace_id = ?", [bytes.fromhex(trace_id)]
    ).fetchone()
    if row is None:
        return None
    spans = read_whole_spans(connection, row[-1], trace_id)
    spans.sort(key=lambda span: (span.start_ns, -span.end_ns, span.span_id))
    return Trace(from_summary_row(row[:-1]), tuple(spans))


def find_ids(connection: sqlite3.Connection, prefix: str, limit: int) -> tuple[str, ...]:
    """See `TraceReader.find_ids`."""
    rows = connection.execute(
        "SELECT trace_id FROM traces WHERE trace_id BETWEEN ? AND ? ORDER BY trace_id LIMIT ?",
        [*_id_range(prefix), limit],
    ).fetchall()
    return tuple(trace_id.hex() for (trace_id,) in rows)


def models(connection: sqlite3.Connection) -> tuple[str, ...]:
    """See `TraceReader.models`."""
    return tuple(model for (model,) in connection.execute(SELECT_MODELS).fetchall())


def _conditions(wanted: TraceFilter) -> Iterator[Condition]:
    for column in ("model", "status", "operation", "endpoint", "error_type", "session", "key_id"):
        if (value := getattr(wanted, column)) is not None:
            yield f"{column} = ?", [value]
    bounds = (
        ("duration_ns >= ?", _nanoseconds(wanted.min_duration_s)),
        ("duration_ns <= ?", _nanoseconds(wanted.max_duration_s)),
        ("input_tokens + output_tokens >= ?", wanted.min_tokens),
        ("input_tokens + output_tokens <= ?", wanted.max_tokens),
        ("started_ns >= ?", wanted.since_ns),
        ("started_ns < ?", wanted.until_ns),
    )
    yield from ((condition, [value]) for condition, value in bounds if value is not None)


def _has_text(connection: sqlite3.Connection, text: str | None) -> Iterator[Condition]:
    if not text:
        return
    pattern = "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"
    ids = [*_id_range(text.lower()), text, text + LAST_CHARACTER]
    if any(_may_contain(connection, column, pattern) for column in ("name", "model")):
        yield TEXT_ANYWHERE, [pattern, pattern, *ids]
    else:
        yield TEXT_IN_ID, ids


def _may_contain(connection: sqlite3.Connection, column: str, pattern: str) -> bool:
    """Whether a value of the column is like `pattern`, or there are too many of them to find out in passing."""
    (words, likes) = connection.execute(
        COUNT_WORDS.format(column=column), [MOST_WORDS, pattern]
    ).fetchone()
    return bool(likes) or words == MOST_WORDS


def _id_range(prefix: str) -> tuple[bytes, bytes]:
    """The lowest and the highest trace id that begin with `prefix`; an empty range when none can."""
    if len(prefix) > 32 or not HEX.fullmatch(prefix):
        return b"\xff", b""
    return bytes.fromhex(prefix.ljust(32, "0")), bytes.fromhex(prefix.ljust(32, "f"))


def _below(cursor: str | None) -> Iterator[Condition]:
    if cursor is None:
        return
    if (found := CURSOR.fullmatch(cursor)) is None:
        raise InvalidQuery(
            f"The cursor {cursor[:40]!r} is none of ours. Leave it out to begin with the newest trace.",
            param="cursor",
        )
    yield "(started_ns, id) < (?, ?)", [int(found[1], 16), int(found[2], 16)]


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)
