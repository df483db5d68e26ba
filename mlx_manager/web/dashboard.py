"""The dashboard: how much, how fast and how well, by model and over a chosen time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.samples import Gauges
from mlx_manager.traces.summary import Stats
from mlx_manager.web.charts import gauge_charts, request_charts, rows
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


@router.get("/dashboard")
async def show_dashboard(
    request: Request, state: CurrentState, traces: CurrentTraces, model: str = ""
) -> Response:
    """Show the figures."""
    period = period_of(request.query_params.get("time", ""), USUAL_TIME)
    context: dict[str, Any] = {
        "stats": None,
        "models": (),
        "model": model,
        "period": period,
        "periods": PERIODS,
        "now": await look(state),
    }
    if traces is not None and period is not None:
        stats, gauges, models = await asyncio.to_thread(
            _figures, traces, period.seconds, model[:255]
        )
        context |= {
            "stats": stats,
            "models": models,
            "totals": totals(stats),
            "request_charts": request_charts(stats),
            "gauge_charts": gauge_charts(gauges),
            "rows": rows(stats, gauges),
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


def _figures(
    traces: TraceReader, seconds: int, model: str
) -> tuple[Stats, Gauges, tuple[str, ...]]:
    now_ns = time.time_ns()
    since_ns = now_ns - seconds * 10**9
    stats = traces.stats(since_ns, now_ns, model or None, buckets=COLUMNS)
    gauges = traces.gauges(since_ns, now_ns, model or None, buckets=COLUMNS)
    return stats, gauges, traces.models()
