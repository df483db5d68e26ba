"""The first page: what is running and how to call it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from mlx_manager.conformance.card import Card, path_beside, read_cards
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.state import ServerState
from mlx_manager.web.shell import page

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model as the page shows it; `card` is None until its files, as they are now, have been checked."""

    id: str
    source: str
    state: str
    is_demonstration: bool
    card: Card | None


@router.head("/")
@router.get("/")
async def show_overview(request: Request, state: CurrentState) -> Response:
    """Show what is running and how to call it."""
    models = await asyncio.to_thread(state.pool.catalog.list)
    cards = await asyncio.to_thread(read_cards, path_beside(state.settings.traces_path))
    context = {
        "base_url": str(request.base_url).rstrip("/") + "/v1",
        "needs_key": bool(state.settings.api_keys),
        "models": [_row(model, state, cards.get((model.id, model.edition))) for model in models],
        "is_healthy": all(resident.is_healthy for resident in state.pool.residents),
    }
    return page(request, "overview.html", context)


def _row(model: ModelFiles, state: ServerState, card: Card | None) -> ModelRow:
    states = {resident.files.id: resident.state for resident in state.pool.residents}
    is_built_in = model.source == "built-in"
    return ModelRow(model.id, model.source, states.get(model.id, "on disk"), is_built_in, card)
