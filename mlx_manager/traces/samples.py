"""How busy and how full models were over time: small rows, written every few seconds and added up when asked for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from typing import Any

from mlx_manager.errors import InvalidQuery


@dataclass(frozen=True, slots=True)
class Sample:
    """One model over the seconds before `at_ns`; without any model in memory, one of the model called "".

    `process` tells apart those who write into one file. `waiting` are requests without a place in a batch, `running`
    those with one: on average and at most. Bytes are the most that was held of each kind.
    """

    at_ns: int
    process: int
    model: str = ""
    waiting_mean: float = 0.0
    waiting_peak: int = 0
    running_mean: float = 0.0
    running_peak: int = 0
    weights_bytes: int = 0
    kv_bytes: int = 0
    prefix_cache_bytes: int = 0
    buffers_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GaugeBucket:
    """One column of a chart; all but its time is None where nothing was written down.

    Means are those of the column's time, the others the most of any of its samples, of all models together.
    """

    start_ns: int
    waiting_mean: float | None = None
    waiting_peak: int | None = None
    running_mean: float | None = None
    running_peak: int | None = None
    weights_bytes: int | None = None
    kv_bytes: int | None = None
    prefix_cache_bytes: int | None = None
    buffers_bytes: int | None = None
    held_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Gauges:
    """How busy and how full models were in `[since_ns, until_ns)`, in columns of equal width."""

    since_ns: int
    until_ns: int
    bucket_ns: int
    buckets: tuple[GaugeBucket, ...]


COLUMNS = tuple(field.name for field in fields(Sample))
MEANS = ("waiting_mean", "running_mean")
KINDS = ("weights_bytes", "kv_bytes", "prefix_cache_bytes", "buffers_bytes")
PEAKS = ("waiting_peak", "running_peak", *KINDS, "held_bytes")
INSERT = f"REPLACE INTO samples ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
# Models of one moment are added, moments of one process averaged, and then processes added: their moments differ. A
# model that isn't in memory counts as zero where others were seen, so that a hole means that nobody was there to look.
SELECT = f"""
SELECT bucket, {", ".join(f"sum({name})" for name in (*MEANS, *PEAKS))} FROM (
    SELECT bucket, {", ".join(f"avg({name}) AS {name}" for name in MEANS)},
        {", ".join(f"max({name}) AS {name}" for name in PEAKS)}
    FROM (
        SELECT (at_ns - :since) / :width AS bucket, process,
            {", ".join(f"total({name}) FILTER (WHERE {{chosen}}) AS {name}" for name in (*MEANS, *PEAKS[:-1]))},
            total({" + ".join(KINDS)}) FILTER (WHERE {{chosen}}) AS held_bytes
        FROM samples WHERE at_ns >= :since AND at_ns < :until GROUP BY at_ns, process
    ) GROUP BY bucket, process
) GROUP BY bucket
""".format(chosen=":model IS NULL OR model = :model")


def store_samples(connection: sqlite3.Connection, samples: Iterable[Sample]) -> None:
    """Write them down, within the caller's transaction."""
    connection.executemany(INSERT, [astuple(sample) for sample in samples])


def delete_samples(connection: sqlite3.Connection, before_ns: int) -> int:
    """Delete those of an earlier time, within the caller's transaction; return how many."""
    return connection.execute("DELETE FROM samples WHERE at_ns < ?", [before_ns]).rowcount


def gauges(
    connection: sqlite3.Connection, since_ns: int, until_ns: int, model: str | None, buckets: int
) -> Gauges:
    """See `TraceReader.gauges`."""
    if until_ns <= since_ns:
        raise InvalidQuery(
            "The time ends before it begins: until must be after since.", param="until"
        )
    width_ns = -(-(until_ns - since_ns) // buckets)
    chosen = {"since": since_ns, "until": until_ns, "model": model, "width": width_ns}
    found = dict(_buckets(connection, chosen))
    columns = (
        found.get(number, GaugeBucket(since_ns + number * width_ns)) for number in range(buckets)
    )
    return Gauges(since_ns, until_ns, width_ns, tuple(columns))


def _buckets(
    connection: sqlite3.Connection, chosen: dict[str, Any]
) -> Iterator[tuple[int, GaugeBucket]]:
    for number, *values in connection.execute(SELECT, chosen).fetchall():
        means = dict(zip(MEANS, values, strict=False))
        peaks = {name: int(value) for name, value in zip(PEAKS, values[len(MEANS) :], strict=True)}
        start_ns = chosen["since"] + number * chosen["width"]
        yield number, GaugeBucket(start_ns, **means, **peaks)
