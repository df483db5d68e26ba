"""`GET /v1/models` and `GET /v1/models/{id}`: in Anthropic's shape for its clients, in OpenAI's for all others."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.wire.anthropic.requests import models_query
from mlx_manager.wire.anthropic.streams import model_info, models_page
from mlx_manager.wire.dialects import ANTHROPIC_VERSION
from mlx_manager.wire.openai.streams import model_object

router = APIRouter(prefix="/v1/models", tags=["OpenAI", "Anthropic"])


@router.get("")
async def list_models(request: Request, state: CurrentState) -> dict[str, Any]:
    """List the models on this machine, loaded or not."""
    is_anthropic = ANTHROPIC_VERSION in request.headers
    query = models_query(request.query_params) if is_anthropic else None
    models = _named(await asyncio.to_thread(state.pool.catalog.list), state.pool.catalog)
    if query is not None:
        return models_page([model_info(name, model.created_s) for name, model in models], query)
    return {"object": "list", "data": [_described(name, model) for name, model in models]}


@router.get("/{model_id:path}")
async def get_model(model_id: str, request: Request, state: CurrentState) -> dict[str, Any]:
    """Describe one model; its id may contain a slash."""
    model = await asyncio.to_thread(state.pool.catalog.find, model_id)
    if ANTHROPIC_VERSION in request.headers:
        return model_info(model_id, model.created_s)
    return _described(model_id, model)


def _named(models: list[ModelFiles], catalog: Catalog) -> list[tuple[str, ModelFiles]]:
    """Return the models by their ids and then by their aliases."""
    by_id = {model.id: model for model in models}
    aliases = sorted(catalog.aliases.items())
    return [*by_id.items(), *((name, by_id[of]) for name, of in aliases if of in by_id)]


def _described(name: str, model: ModelFiles) -> dict[str, Any]:
    owner = "mlx-manager" if model.source == "built-in" else model.id.split("/")[0]
    return model_object(name, model.created_s, owner)
