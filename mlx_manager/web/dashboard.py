"""The dashboard: how much, how fast and how well, by model and over a chosen time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.summary import Stats, StatsBucket
from mlx_manager.web.events import look
from mlx_manager.web.filters import PERIODS, period_of
from mlx_manager.web.shell import page
from mlx_manager.web.store import CurrentTraces

USUAL_TIME = "1h"
COLUMNS = 60

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all models; rates are a second's."""

    requests: int
    errors: int
    cancelled: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over time: `columns` are the times in seconds since the Unix epoch, then a list of values a curve."""

    title: str
    unit: str
    curves: tuple[str, ...]
    columns: tuple[tuple[float | None, ...], ...]
    has_bars: bool = False


@router.get("/dashboard")
async def show_dashboard(
    request: Request, state: CurrentState, traces: CurrentTraces, model: str = ""
) -> Response:
    """Show the figures."""
    period = period_of(request.query_params.get("time", ""), USUAL_TIME)
    stats: Stats | None = None
    models: tuple[str, ...] = ()
    if traces is not None and period is not None:
        stats, models = await asyncio.to_thread(_figures, traces, period.seconds, model[:255])
    context = {
        "stats": stats,
        "totals": totals(stats) if stats else None,
        "charts": tuple(charts(stats)) if stats else (),
        "models": models,
        "model": model,
        "period": period,
        "periods": PERIODS,
        "now": await look(state),
    }
    return page(request, "dashboard.html", context)


def totals(stats: Stats) -> Totals:
    """Add the models up."""
    seconds = max(1e-9, (stats.until_ns - stats.since_ns) / 1e9)
    output = sum(model.output_tokens for model in stats.models)
    return Totals(
        requests=sum(model.requests for model in stats.models),
        errors=sum(model.errors for model in stats.models),
        cancelled=sum(model.cancelled for model in stats.models),
        input_tokens=sum(model.input_tokens for model in stats.models),
        cached_tokens=sum(model.cached_tokens for model in stats.models),
        output_tokens=output,
        output_tokens_per_s=output / seconds,
    )


def charts(stats: Stats) -> Iterator[Chart]:
    """The curves of the page; a column without requests has no latency, but it has zero requests."""
    width_s = stats.bucket_ns / 1e9

    def over_time(
        *reads: Callable[[StatsBucket], float | None],
    ) -> tuple[tuple[float | None, ...], ...]:
        times = tuple(bucket.start_ns / 1e9 for bucket in stats.buckets)
        return times, *(tuple(read(bucket) for bucket in stats.buckets) for read in reads)

    yield Chart(
        "Latency",
        "s",
        ("p50", "p95"),
        over_time(lambda bucket: bucket.p50_s, lambda bucket: bucket.p95_s),
    )
    yield Chart(
        "Tokens per second",
        "tokens/s",
        ("out", "in"),
        over_time(
            lambda bucket: bucket.output_tokens / width_s,
            lambda bucket: bucket.input_tokens / width_s,
        ),
    )
    yield Chart(
        "Requests",
        "requests",
        ("requests", "errors"),
        over_time(lambda bucket: bucket.requests, lambda bucket: bucket.errors),
        has_bars=True,
    )


def _figures(traces: TraceReader, seconds: int, model: str) -> tuple[Stats, tuple[str, ...]]:
    now_ns = time.time_ns()
    stats = traces.stats(now_ns - seconds * 10**9, now_ns, model or None, buckets=COLUMNS)
    return stats, traces.models()
