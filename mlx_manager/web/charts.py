"""The curves of the dashboard, and the same figures as rows of a table. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mlx_manager.traces.samples import GaugeBucket, Gauges
from mlx_manager.traces.summary import Stats, StatsBucket

Column = TypeVar("Column", StatsBucket, GaugeBucket)
Curve = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over time: `columns` are the times in seconds since the Unix epoch, then a list of values a curve."""

    title: str
    unit: str
    curves: tuple[str, ...]
    columns: tuple[Curve, ...]
    has_bars: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """What all charts show of one column of time; None where there was nothing to see."""

    requests: StatsBucket
    gauges: GaugeBucket
    output_tokens_per_s: float
    input_tokens_per_s: float
    cached_percent: float | None


def request_charts(stats: Stats) -> Iterator[Chart]:
    """What requests were like; a column without requests has no latency, but it has zero requests."""
    buckets, width_s = stats.buckets, stats.bucket_ns / 1e9
    yield Chart(
        "Latency",
        "s",
        ("p50", "p95"),
        _over_time(buckets, lambda one: one.p50_s, lambda one: one.p95_s),
    )
    yield Chart(
        "Tokens per second",
        "tokens/s",
        ("out", "in"),
        _over_time(
            buckets, lambda one: one.output_tokens / width_s, lambda one: one.input_tokens / width_s
        ),
    )
    yield Chart(
        "Requests",
        "requests",
        ("requests", "errors"),
        _over_time(buckets, lambda one: one.requests, lambda one: one.errors),
        has_bars=True,
    )
    yield Chart(
        "Prompt tokens from the cache",
        "%",
        ("from the cache",),
        _over_time(buckets, cached_percent),
    )


def gauge_charts(gauges: Gauges) -> Iterator[Chart]:
    """How busy and how full models were."""
    yield Chart(
        "Queue and batch",
        "requests",
        ("waiting at most", "in a batch at most"),
        _over_time(gauges.buckets, lambda one: one.waiting_peak, lambda one: one.running_peak),
    )
    yield Chart(
        "Memory",
        "bytes",
        ("weights", "keys and values", "prefix cache", "buffers"),
        _over_time(
            gauges.buckets,
            lambda one: one.weights_bytes,
            lambda one: one.kv_bytes,
            lambda one: one.prefix_cache_bytes,
            lambda one: one.buffers_bytes,
        ),
    )


def rows(stats: Stats, gauges: Gauges) -> list[Row]:
    """The columns in which there was something to see, the newest first; both have the same columns."""
    width_s = stats.bucket_ns / 1e9
    found = [
        Row(
            requests,
            gauge,
            requests.output_tokens / width_s,
            requests.input_tokens / width_s,
            cached_percent(requests),
        )
        for requests, gauge in zip(stats.buckets, gauges.buckets, strict=True)
        if requests.requests or gauge.held_bytes is not None
    ]
    return found[::-1]


def cached_percent(bucket: StatsBucket) -> float | None:
    """How many of a hundred prompt tokens came from the prefix cache; None without any prompt."""
    return 100 * bucket.cached_tokens / bucket.input_tokens if bucket.input_tokens else None


def _over_time(
    buckets: Sequence[Column], *reads: Callable[[Column], float | None]
) -> tuple[Curve, ...]:
    times = tuple(bucket.start_ns / 1e9 for bucket in buckets)
    return times, *(tuple(read(bucket) for bucket in buckets) for read in reads)
