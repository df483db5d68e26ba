"""The pages. Now one: what is running, and how to call it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.templating import Jinja2Templates
from starlette.staticfiles import StaticFiles

from mlx_manager import __version__
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.state import ServerState

HERE = Path(__file__).parent
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)
static_files = StaticFiles(directory=HERE / "static")
templates = Jinja2Templates(directory=HERE / "templates")


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model as the page shows it."""

    id: str
    source: str
    state: str
    is_demonstration: bool


@router.head("/")
@router.get("/")
async def show_home(request: Request, state: CurrentState) -> Response:
    """Show what is running and how to call it."""
    models = await asyncio.to_thread(state.pool.catalog.list)
    context = {
        "version": __version__,
        "base_url": str(request.base_url).rstrip("/") + "/v1",
        "models": [_row(model, state) for model in models],
        "is_healthy": all(resident.is_healthy for resident in state.pool.residents),
    }
    response = templates.TemplateResponse(request, "home.html", context)
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def _row(model: ModelFiles, state: ServerState) -> ModelRow:
    states = {resident.files.id: resident.state for resident in state.pool.residents}
    is_built_in = model.source == "built-in"
    return ModelRow(model.id, model.source, states.get(model.id, "on disk"), is_built_in)
