"""`GET /metrics`: all metrics, for Prometheus."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_manager.errors import MetricsForbidden, MetricsOff
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
    if _has_key(request, settings) or _is_local(request):
        return
    raise MetricsForbidden(
        "Metrics are for readers on this machine, and for others with the key: set MLX_SERVER_METRICS_KEY and send "
        "it as Authorization: Bearer KEY."
    )


def _has_key(request: Request, settings: Settings) -> bool:
    if settings.metrics_key is None:
        return False
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    wanted = settings.metrics_key.get_secret_value()
    return scheme.lower() == "bearer" and secrets.compare_digest(given.encode(), wanted.encode())


def _is_local(request: Request) -> bool:
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
