"""The first page: what is running and how to call it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from mlx_manager.capability_card import Card, path_beside, read_cards
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.state import ServerState
from mlx_manager.web.shell import page

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model as the page shows it; `card` is None until its files, as they are now, have been checked.

    Keys and values have `kv_bits`, or are whole. `memory_bytes` is what it counts for in the memory budget, None unless
    it is in memory.
    """

    id: str
    source: str
    state: str
    aliases: tuple[str, ...]
    is_pinned: bool
    memory_bytes: int | None
    is_demonstration: bool
    kv_bits: int | None
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
        "committed_bytes": state.pool.committed_bytes,
        "budget_bytes": state.pool.ledger.budget_bytes,
        "is_healthy": all(resident.is_healthy for resident in state.pool.residents),
    }
    return page(request, "overview.html", context)


def _row(model: ModelFiles, state: ServerState, card: Card | None) -> ModelRow:
    resident = state.pool.resident(model.id)
    return ModelRow(
        id=model.id,
        source=model.source,
        state=resident.state if resident else "on disk",
        aliases=model.settings.aliases,
        is_pinned=state.pool.is_pinned(model),
        memory_bytes=resident.committed_bytes if resident else None,
        is_demonstration=model.is_demonstration,
        kv_bits=model.settings.kv_bits,
        card=card,
    )
