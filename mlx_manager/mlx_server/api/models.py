"""`GET /v1/models` and `GET /v1/models/{id}`: in Anthropic's shape for its clients, in OpenAI's for all others."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.pool.catalog import ModelFiles
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
    models = await asyncio.to_thread(state.pool.catalog.list)
    if query is not None:
        return models_page([model_info(model.id, model.created_s) for model in models], query)
    return {"object": "list", "data": [_described(model) for model in models]}


@router.get("/{model_id:path}")
async def get_model(model_id: str, request: Request, state: CurrentState) -> dict[str, Any]:
    """Describe one model; its id may contain a slash."""
    model = await asyncio.to_thread(state.pool.catalog.find, model_id)
    if ANTHROPIC_VERSION in request.headers:
        return model_info(model.id, model.created_s)
    return _described(model)


def _described(model: ModelFiles) -> dict[str, Any]:
    owner = "mlx-manager" if model.source == "built-in" else model.id.split("/")[0]
    return model_object(model.id, model.created_s, owner)
