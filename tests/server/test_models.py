"""`GET /v1/models` and `GET /v1/models/{id}`, with the `openai` package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import openai as sdk
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from mlx_manager.capability_card import Card, keep_card, path_beside
from tests.conftest import TINY
from tests.support.running import RunningServer


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


@pytest.fixture
def card(server: RunningServer) -> Iterator[Card]:
    """What the tiny model was found to be able to do, kept where the server finds it."""
    path = path_beside(server.state.settings.traces_path)
    edition = server.pool.catalog.find(TINY).edition
    card = Card(TINY, edition, "1", "2026-11-26T09:00:00+00:00", {"calls tools": "no"}, 40, 0)
    keep_card(path, card)
    yield card
    path.unlink()


async def test_what_a_model_was_found_to_do_stands_in_every_list(
    card: Card,
    openai: AsyncOpenAI,
    anthropic: AsyncAnthropic,
    http: httpx.AsyncClient,
) -> None:
    expected = {
        "checked_at": card.checked_at,
        "version": "1",
        "capabilities": {"calls tools": "no"},
        "passed": 40,
        "failed": 0,
    }
    listed = {model.id: model async for model in openai.models.list()}
    assert (listed[TINY].model_extra or {})["capability_card"] == expected
    assert "capability_card" not in (listed["test/plain"].model_extra or {})
    model = await openai.models.retrieve(TINY)
    assert (model.model_extra or {})["capability_card"] == expected
    infos = {model.id: model async for model in anthropic.models.list()}
    assert (infos[TINY].model_extra or {})["capability_card"] == expected
    assert infos[TINY].capabilities is None
    found = await anthropic.models.retrieve(TINY)
    assert (found.model_extra or {})["capability_card"] == expected
    models = {one["id"]: one for one in (await http.get("/admin/models")).json()["models"]}
    assert models[TINY]["capability_card"] == expected
    assert models["test/plain"]["capability_card"] is None


async def test_a_card_of_other_files_of_the_model_is_none_of_it(
    card: Card, server: RunningServer, http: httpx.AsyncClient
) -> None:
    path = path_beside(server.state.settings.traces_path)
    keep_card(path, replace(card, revision="another"))
    assert "capability_card" not in (await http.get(f"/v1/models/{TINY}")).json()
