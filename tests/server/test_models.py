"""`GET /v1/models` and `GET /v1/models/{id}`, with the `openai` package."""

from __future__ import annotations

import openai as sdk
import pytest
from openai import AsyncOpenAI


async def test_models_of_every_place_are_listed_by_repository_id(openai: AsyncOpenAI) -> None:
    ids = [model.id async for model in openai.models.list()]
    assert ids == ["mlx-manager/starter", "test/late", "test/plain", "test/short", "test/tiny"]


async def test_a_model_is_described(openai: AsyncOpenAI) -> None:
    model = await openai.models.retrieve("test/tiny")
    assert (model.id, model.object, model.owned_by) == ("test/tiny", "model", "test")
    assert model.created > 1_700_000_000


async def test_an_unknown_model_is_a_404(openai: AsyncOpenAI) -> None:
    with pytest.raises(sdk.NotFoundError, match="test/tiny"):
        await openai.models.retrieve("test/unknown")
