"""`GET /v1/models` and `GET /v1/models/{id}`: in Anthropic's shape for its clients, in OpenAI's for all others."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from mlx_manager.mlx_server.api.cards import Cards, cards_of
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.generation.abilities import told_abilities
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.wire.anthropic.models import model_info, models_page, models_query
from mlx_manager.wire.dialects import ANTHROPIC_VERSION
from mlx_manager.wire.openai.streams import model_object

router = APIRouter(prefix="/v1/models", tags=["OpenAI", "Anthropic"])


@router.get("")
async def list_models(request: Request, state: CurrentState) -> dict[str, Any]:
    """List the models on this machine, loaded or not."""
    is_anthropic = ANTHROPIC_VERSION in request.headers
    query = models_query(request.query_params.multi_items()) if is_anthropic else None
    catalog = state.pool.catalog
    models, cards = _named(await asyncio.to_thread(catalog.list), catalog), await cards_of(state)
    if query is not None:
        infos = await asyncio.to_thread(_infos, models)
        told = zip(infos, models, strict=True)
        return models_page([_with_card(info, one, cards) for info, (_, one) in told], query)
    described = [_with_card(_described(name, one), one, cards) for name, one in models]
    return {"object": "list", "data": described}


@router.get("/{model_id:path}")
async def get_model(model_id: str, request: Request, state: CurrentState) -> dict[str, Any]:
    """Describe one model; its id may contain a slash."""
    model = await asyncio.to_thread(state.pool.catalog.find, model_id)
    cards = await cards_of(state)
    if ANTHROPIC_VERSION in request.headers:
        [info] = await asyncio.to_thread(_infos, [(model_id, model)])
        return _with_card(info, model, cards)
    return _with_card(_described(model_id, model), model, cards)


def _named(models: list[ModelFiles], catalog: Catalog) -> list[tuple[str, ModelFiles]]:
    """Return the models by their ids and then by their aliases."""
    by_id = {model.id: model for model in models}
    aliases = sorted(catalog.aliases.items())
    return [*by_id.items(), *((name, by_id[of]) for name, of in aliases if of in by_id)]


def _infos(models: list[tuple[str, ModelFiles]]) -> list[dict[str, Any]]:
    """Return models in Anthropic's words. It reads files, a few of each."""
    return [
        model_info(name, _display_name(name, one), one.created_s, told_abilities(one))
        for name, one in models
    ]


def _display_name(name: str, model: ModelFiles) -> str:
    return f"{name} (demonstration)" if model.is_demonstration else name


def _described(name: str, model: ModelFiles) -> dict[str, Any]:
    """Return a model in OpenAI's words, and that it is a demonstration, for which they have none."""
    if not model.is_demonstration:
        return model_object(name, model.created_s, owned_by=model.id.split("/")[0])
    return {
        **model_object(name, model.created_s, owned_by="mlx-manager"),
        "is_demonstration": True,
    }


def _with_card(described: dict[str, Any], model: ModelFiles, cards: Cards) -> dict[str, Any]:
    """Return a model with what it was found to be able to do, which is in neither API; unchanged without a card."""
    card = cards.of(model)
    return described if card is None else {**described, "capability_card": card.model_dump()}
