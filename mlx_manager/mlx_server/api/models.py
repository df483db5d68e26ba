"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter

from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.wire.openai.streams import model_object

router = APIRouter(prefix="/v1/models", tags=["OpenAI"])


@router.get("")
async def list_models(state: CurrentState) -> dict[str, Any]:
    """List the models on this machine, loaded or not."""
    models = await asyncio.to_thread(state.pool.catalog.list)
    return {"object": "list", "data": [_described(model) for model in models]}


@router.get("/{model_id:path}")
async def get_model(model_id: str, state: CurrentState) -> dict[str, Any]:
    """Describe one model; its id may contain a slash."""
    return _described(await asyncio.to_thread(state.pool.catalog.find, model_id))


def _described(model: ModelFiles) -> dict[str, Any]:
    owner = "mlx-manager" if model.source == "built-in" else model.id.split("/")[0]
    return model_object(model.id, model.created_s, owner)
