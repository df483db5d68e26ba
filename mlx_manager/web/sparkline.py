"""A small curve of latency over time, as an SVG path. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from mlx_manager.traces.summary import Stats

WIDTH, HEIGHT = 600, 48


@dataclass(frozen=True, slots=True)
class Sparkline:
    """Two curves in a box of `WIDTH` by `HEIGHT`, and what the top of the box means."""

    median: str
    slow: str
    top_s: float
    requests: int


def sparkline(stats: Stats) -> Sparkline | None:
    """The medians and 95th percentiles of all columns; None when nothing happened."""
    medians = [bucket.p50_s for bucket in stats.buckets]
    slow = [bucket.p95_s for bucket in stats.buckets]
    top_s = max((value for value in (*medians, *slow) if value is not None), default=0.0)
    if top_s <= 0:
        return None
    requests = sum(bucket.requests for bucket in stats.buckets)
    return Sparkline(_path(medians, top_s), _path(slow, top_s), top_s, requests)


def _path(values: Sequence[float | None], top: float) -> str:
    """Lines through neighbours; a value that stands alone is a short dash, and a hole stays a hole."""
    return "".join(_strokes(values, top))


def _strokes(values: Sequence[float | None], top: float) -> Iterator[str]:
    step = WIDTH / max(1, len(values))
    numbered = enumerate(values)
    for is_there, run in groupby(numbered, key=lambda pair: pair[1] is not None):
        if is_there:
            points = [
                f"{(index + 0.5) * step:.1f} {HEIGHT - 2 - (value or 0) / top * (HEIGHT - 4):.1f}"
                for index, value in run
            ]
            yield f"M{'L'.join(points)}{'h4' if len(points) == 1 else ''}"
