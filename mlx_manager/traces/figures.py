"""Figures over many traces, computed inside SQLite: there, unlike in Python, other threads go on meanwhile."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from mlx_manager.errors import InvalidQuery
from mlx_manager.traces.summary import ModelStats, Percentiles, Stats, StatsBucket

# Failures count in durations only; a request that its client left says nothing about how long it would have taken.
DURATION = ("duration_s", "status <> 'cancelled'")
MEASURES = (
    DURATION,
    ("time_to_first_token_s", "status = 'ok'"),
    ("time_per_output_token_s", "status = 'ok'"),
)
CHOSEN = "started_ns >= :since AND started_ns < :until AND (:model IS NULL OR model = :model)"
# The smallest value that so many of a hundred are not above. Counting in the window, too, would take twice the time.
SELECT_RANKED = f"""
WITH counted AS MATERIALIZED (
    SELECT {{kind}} AS kind, count(*) AS total FROM requests
    WHERE {CHOSEN} AND {{counts}} AND {{value}} IS NOT NULL GROUP BY 1
), ranked AS (
    SELECT {{kind}} AS kind, {{value}} AS value, trace,
        row_number() OVER (PARTITION BY {{kind}} ORDER BY {{value}}) AS place
    FROM requests WHERE {CHOSEN} AND {{counts}} AND {{value}} IS NOT NULL
)
SELECT kind, total, place, value, (SELECT lower(hex(trace_id)) FROM traces WHERE id = trace)
FROM ranked JOIN counted USING (kind)
WHERE place IN ((total * 50 + 99) / 100, (total * 95 + 99) / 100, (total * 99 + 99) / 100)
"""
TOTALS = f"""
SELECT {{kind}}, count(*), total(status = 'error'), total(status = 'cancelled'),
    total(input_tokens), total(cached_tokens), total(output_tokens)
FROM requests WHERE {CHOSEN} GROUP BY 1
"""
# `model` is never an empty text, so that one can stand for none: nothing equals a NULL.
MODEL = "ifnull(model, '')"
BUCKET = "(started_ns - :since) / :width"

Parameters = dict[str, Any]
Ranked = dict[Any, Percentiles]


def stats(
    connection: sqlite3.Connection, since_ns: int, until_ns: int, model: str | None, buckets: int
) -> Stats:
    """See `TraceReader.stats`."""
    if until_ns <= since_ns:
        raise InvalidQuery(
            "The time ends before it begins: until must be after since.", param="until"
        )
    width_ns = -(-(until_ns - since_ns) // buckets)
    chosen: Parameters = {"since": since_ns, "until": until_ns, "model": model, "width": width_ns}
    return Stats(
        since_ns,
        until_ns,
        width_ns,
        tuple(_models(connection, chosen)),
        tuple(_buckets(connection, chosen, buckets)),
    )


def _models(connection: sqlite3.Connection, chosen: Parameters) -> Iterable[ModelStats]:
    ranked = [_ranked(connection, MODEL, measure, chosen) for measure in MEASURES]
    rows = connection.execute(TOTALS.format(kind=MODEL), chosen).fetchall()
    for model, *totals in sorted(rows, key=lambda row: (-row[1], row[0])):
        requests, errors, cancelled, input_tokens, cached_tokens, output_tokens = map(int, totals)
        yield ModelStats(
            model or None,
            requests,
            errors,
            cancelled,
            input_tokens,
            cached_tokens,
            output_tokens,
            *(by_model.get(model, Percentiles()) for by_model in ranked),
        )


def _buckets(
    connection: sqlite3.Connection, chosen: Parameters, buckets: int
) -> Iterable[StatsBucket]:
    ranked = _ranked(connection, BUCKET, DURATION, chosen)
    rows = connection.execute(TOTALS.format(kind=BUCKET), chosen).fetchall()
    found = {bucket: tuple(map(int, totals)) for bucket, *totals in rows}
    for bucket in range(buckets):
        requests, errors, _, input_tokens, _, output_tokens = found.get(bucket, (0,) * 6)
        percentiles = ranked.get(bucket, Percentiles())
        yield StatsBucket(
            chosen["since"] + bucket * chosen["width"],
            requests,
            errors,
            input_tokens,
            output_tokens,
            percentiles.p50_s,
            percentiles.p95_s,
        )


def _ranked(
    connection: sqlite3.Connection, kind: str, measure: tuple[str, str], chosen: Parameters
) -> Ranked:
    """Percentiles of a measure by what `kind` says of a request."""
    value, counts = measure
    query = SELECT_RANKED.format(kind=kind, value=value, counts=counts)
    places: dict[Any, tuple[int, dict[int, tuple[float, str]]]] = {}
    for key, total, place, seconds, trace_id in connection.execute(query, chosen).fetchall():
        places.setdefault(key, (total, {}))[1][place] = (seconds, trace_id)
    return {key: _percentiles(total, found) for key, (total, found) in places.items()}


def _percentiles(total: int, found: dict[int, tuple[float, str]]) -> Percentiles:
    (p50_s, p50_id), (p95_s, p95_id), (p99_s, p99_id) = (
        found[-(-total * percent // 100)] for percent in (50, 95, 99)
    )
    return Percentiles(total, p50_s, p95_s, p99_s, p50_id, p95_id, p99_id)
