"""Figures over many traces, computed inside SQLite: there, unlike in Python, other threads go on meanwhile."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mlx_manager.errors import InvalidQuery
from mlx_manager.traces.summary import ModelStats, Percentiles, Stats, StatsBucket

PERCENTS = (50, 95, 99)
# What is measured, of which requests. Failures count in durations only; a request that its client left says nothing
# about how long it would have taken.
DURATION = ("duration_s", "status <> 'cancelled'")
MEASURES = (
    DURATION,
    ("time_to_first_token_s", "status = 'ok' AND time_to_first_token_s IS NOT NULL"),
    ("time_per_output_token_s", "status = 'ok' AND time_per_output_token_s IS NOT NULL"),
)
CHOSEN = "started_ns >= :since AND started_ns < :until AND (:model IS NULL OR model = :model)"
TOTALS = f"""
SELECT {{kind}}, count(*), total(status = 'error'), total(status = 'cancelled'),
    total(input_tokens), total(cached_tokens), total(output_tokens),
    {", ".join(f"total({counts})" for _, counts in MEASURES)}
FROM requests WHERE {CHOSEN} GROUP BY 1
"""
# The places are worked out from the totals: counting in the same window takes twice the time.
SELECT_PLACES = f"""
SELECT kind, place, value, (SELECT lower(hex(trace_id)) FROM traces WHERE id = trace) FROM (
    SELECT {{kind}} AS kind, {{value}} AS value, trace,
        row_number() OVER (PARTITION BY {{kind}} ORDER BY {{value}}) AS place
    FROM requests WHERE {CHOSEN} AND {{counts}}
) WHERE (kind, place) IN (VALUES {{places}})
"""
# `model` is never an empty text, so that one can stand for none: nothing equals a NULL.
MODEL = "ifnull(model, '')"
BUCKET = "(started_ns - :since) / :width"

Parameters = dict[str, Any]
Measure = tuple[str, str]


class Totals(NamedTuple):
    """What was counted of one model or in one column; `measured` has a count for each of `MEASURES`."""

    requests: int = 0
    errors: int = 0
    cancelled: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    measured: tuple[int, ...] = (0,) * len(MEASURES)


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


def _models(connection: sqlite3.Connection, chosen: Parameters) -> Iterator[ModelStats]:
    totals = _totals(connection, MODEL, chosen)
    ranked = [
        _ranked(connection, MODEL, measure, chosen, {k: t.measured[n] for k, t in totals.items()})
        for n, measure in enumerate(MEASURES)
    ]
    for model, found in sorted(totals.items(), key=lambda item: (-item[1].requests, item[0])):
        percentiles = (by_model.get(model, Percentiles()) for by_model in ranked)
        yield ModelStats(model or None, *found[:-1], *percentiles)


def _buckets(
    connection: sqlite3.Connection, chosen: Parameters, buckets: int
) -> Iterator[StatsBucket]:
    totals = _totals(connection, BUCKET, chosen)
    counts = {bucket: found.measured[0] for bucket, found in totals.items()}
    ranked = _ranked(connection, BUCKET, DURATION, chosen, counts)
    for bucket in range(buckets):
        found = totals.get(bucket, Totals())
        percentiles = ranked.get(bucket, Percentiles())
        yield StatsBucket(
            start_ns=chosen["since"] + bucket * chosen["width"],
            requests=found.requests,
            errors=found.errors,
            input_tokens=found.input_tokens,
            cached_tokens=found.cached_tokens,
            output_tokens=found.output_tokens,
            p50_s=percentiles.p50_s,
            p95_s=percentiles.p95_s,
        )


def _totals(connection: sqlite3.Connection, kind: str, chosen: Parameters) -> dict[Any, Totals]:
    """What there is of each kind: a model, or a column's number."""
    rows = connection.execute(TOTALS.format(kind=kind), chosen).fetchall()
    return {key: _counted([int(count) for count in counts]) for key, *counts in rows}


def _counted(counts: list[int]) -> Totals:
    requests, errors, cancelled, input_tokens, cached_tokens, output_tokens, *measured = counts
    return Totals(
        requests, errors, cancelled, input_tokens, cached_tokens, output_tokens, tuple(measured)
    )


def _ranked(
    connection: sqlite3.Connection,
    kind: str,
    measure: Measure,
    chosen: Parameters,
    counts: Mapping[Any, int],
) -> dict[Any, Percentiles]:
    """Percentiles of a measure by kind; `counts` says how many values each kind has."""
    wanted = [(key, place) for key, count in counts.items() for place in _places(count)]
    if not wanted:
        return {}
    value, measured = measure
    values: Parameters = {}
    for number, (key, place) in enumerate(wanted):
        values |= {f"kind{number}": key, f"place{number}": place}
    listed = ", ".join(f"(:kind{number}, :place{number})" for number in range(len(wanted)))
    query = SELECT_PLACES.format(kind=kind, value=value, counts=measured, places=listed)
    found = {
        (key, place): (seconds, trace_id)
        for key, place, seconds, trace_id in connection.execute(query, chosen | values).fetchall()
    }
    return {
        key: _percentiles(count, [found[key, place] for place in _places(count)])
        for key, count in counts.items()
        if count
    }


def _places(count: int) -> tuple[int, ...]:
    """Where the smallest value stands that so many of a hundred are not above; nowhere without any."""
    return tuple(-(-count * percent // 100) for percent in PERCENTS) if count else ()


def _percentiles(count: int, found: Sequence[tuple[float, str]]) -> Percentiles:
    (p50_s, p50_id), (p95_s, p95_id), (p99_s, p99_id) = found
    return Percentiles(count, p50_s, p95_s, p99_s, p50_id, p95_id, p99_id)
