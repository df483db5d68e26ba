"""Compose the manager: the inference server's routes and state, and the manager's own pages, in one application."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import JSONResponse

from mlx_manager import __version__
from mlx_manager.mlx_server.api import requests, timeouts
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.api.health import health_response
from mlx_manager.mlx_server.app import server_app
from mlx_manager.mlx_server.config import Settings as ServerSettings
from mlx_manager.observability.logfire_config import instrument_fastapi
from mlx_manager.traces import api as traces
from mlx_manager.web import pages

router = APIRouter(prefix="/api", tags=["Manager"])


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def get_health(state: CurrentState) -> JSONResponse:
    """Say `ok`, or 503 and `unhealthy` while a loaded model's engine is dead or stalled."""
    return health_response(state)


@router.get("/version")
async def get_version() -> dict[str, Any]:
    """Say which version this is."""
    return {"name": "mlx-manager", "version": __version__}


def create_app(server_settings: ServerSettings) -> FastAPI:
    """Return the manager with the inference server in it."""
    app = server_app("MLX Manager", server_settings)
    app.include_router(router)
    app.include_router(requests.router)
    app.include_router(timeouts.router)
    app.include_router(traces.router)
    app.include_router(pages.router)
    app.mount("/static", pages.static_files, name="static")
    instrument_fastapi(app)
    return app
