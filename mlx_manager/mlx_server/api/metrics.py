"""`GET /metrics`: all metrics, for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_manager.errors import MetricsForbidden, MetricsOff
from mlx_manager.mlx_server.api.callers import has_key, is_local
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.config import Settings
from mlx_manager.observability.setup import scrape

router = APIRouter(tags=["Metrics"])


@router.get("/metrics", response_class=Response)
async def get_metrics(request: Request, state: CurrentState) -> Response:
    """Give all metrics as OpenMetrics text with exemplars, or as Prometheus's older text where Accept asks for it."""
    if state.settings.metrics:
        _authorise(request, state.settings)
        found = await asyncio.to_thread(scrape, request.headers.get("accept", ""))
        if found is not None:
            return Response(found.body, headers={"Content-Type": found.content_type})
    raise MetricsOff(
        "Metrics are not offered here. Start the server with MLX_SERVER_METRICS=true to have them at /metrics."
    )


def _authorise(request: Request, settings: Settings) -> None:
    """Raise MetricsForbidden unless the reader is on this machine or has the key."""
    if has_key(request, settings.metrics_key) or is_local(request):
        return
    raise MetricsForbidden(
        "Metrics are for readers on this machine, and for others with the key: set MLX_SERVER_METRICS_KEY and send "
        "it as Authorization: Bearer KEY."
    )
