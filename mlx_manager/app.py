"""Compose the manager: the inference server's routes and state, and the manager's own pages, in one application."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from mlx_manager import __version__
from mlx_manager.config import Settings
from mlx_manager.mlx_server.api import requests, timeouts
from mlx_manager.mlx_server.api.callers import has_key
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.api.health import health_response
from mlx_manager.mlx_server.app import server_app
from mlx_manager.mlx_server.config import Settings as ServerSettings
from mlx_manager.observability.logfire_config import instrument_fastapi
from mlx_manager.traces import api as traces
from mlx_manager.web import events, pages
from mlx_manager.web.guard import GuardMiddleware
from mlx_manager.web.problem import install_error_pages
from mlx_manager.web.shell import static_files

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


def create_app(server_settings: ServerSettings, settings: Settings | None = None) -> FastAPI:
    """Return the manager with the inference server in it; without `settings` as they are by default."""
    # Not `Settings()`, which would read the environment: that is for `main`.
    settings = settings or Settings.model_construct()
    app = server_app("MLX Manager", server_settings, beside=events.live_updates)
    app.include_router(router)
    app.include_router(traces.router)
    app.include_router(events.router)
    app.include_router(requests.router)
    app.include_router(timeouts.router)
    app.include_router(pages.router)
    app.mount("/static", static_files, name="static")
    install_error_pages(app)
    # The innermost: what it refuses has a request id and a line in the log like anything else.
    app.user_middleware.append(
        Middleware(
            GuardMiddleware,
            is_open=settings.open_ui,
            names=(settings.host, *settings.host_names),
            admits=partial(has_key, key=server_settings.admin_key),
        )
    )
    # So whoever comes as far as `/admin` may administer.
    app.state.guards_admin = True
    app.state.open_ui = settings.open_ui
    instrument_fastapi(app)
    return app
