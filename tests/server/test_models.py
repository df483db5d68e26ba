"""`GET /v1/models` and `GET /v1/models/{id}`, with the `openai` package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import anthropic as anthropic_sdk
import httpx
import openai as sdk
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import ModelInfo
from openai import AsyncOpenAI
from pydantic import TypeAdapter

from mlx_manager.capability_card import Card, keep_card, path_beside
from tests.conftest import TINY
from tests.support.running import RunningServer
from tests.support.sdk_types import extras_of


async def test_models_of_every_place_are_listed_by_repository_id(openai: AsyncOpenAI) -> None:
    ids = [model.id async for model in openai.models.list()]
    assert ids == ["mlx-manager/starter", "test/late", "test/plain", "test/short", "test/tiny"]


async def test_a_model_is_described(openai: AsyncOpenAI) -> None:
    model = await openai.models.retrieve("test/tiny")
    assert (model.id, model.object, model.owned_by) == ("test/tiny", "model", "test")
    assert model.created > 1_700_000_000


async def test_the_starter_model_is_labelled_a_demonstration_in_both_apis_and_the_list_of_the_administrator(
    openai: AsyncOpenAI, anthropic: AsyncAnthropic, http: httpx.AsyncClient
) -> None:
    labelled = [
        model.id
        async for model in openai.models.list()
        if (model.model_extra or {}).get("is_demonstration")
    ]
    names = {model.id: model.display_name async for model in anthropic.models.list()}
    states = (await http.get("/admin/models")).json()["models"]
    assert labelled == ["mlx-manager/starter"]
    assert names == {id_: id_ for id_ in names} | {
        "mlx-manager/starter": "mlx-manager/starter (demonstration)"
    }
    assert [one["id"] for one in states if one["is_demonstration"]] == labelled


async def test_an_unknown_model_is_a_404(openai: AsyncOpenAI) -> None:
    with pytest.raises(sdk.NotFoundError, match="test/tiny"):
        await openai.models.retrieve("test/unknown")


async def test_anthropic_s_clients_are_told_what_the_files_of_models_say(
    anthropic: AsyncAnthropic, http: httpx.AsyncClient, server: RunningServer
) -> None:
    before = {one.files.id for one in server.pool.residents}
    infos = {model.id: model async for model in anthropic.models.list(lifecycle=["active"])}
    for info in infos.values():
        TypeAdapter(ModelInfo).validate_json(info.to_json(), strict=True)
        assert extras_of(info) == set()
        assert info.max_tokens == info.max_input_tokens
        one = await anthropic.models.retrieve(info.id, workspace_id="wrkspc_1")
        assert one.to_dict() == info.to_dict()
    read = {}
    for model in infos:
        told = await http.post("/v1/tokenize", json={"model": model, "prompt": "a"})
        read[model] = told.json()["max_model_len"]
    assert {model: info.max_input_tokens for model, info in infos.items()} == read
    thinking = {
        model: info.capabilities.thinking.supported
        for model, info in infos.items()
        if info.capabilities
    }
    assert thinking == {model: model == "mlx-manager/starter" for model in infos}
    assert {one.files.id for one in server.pool.residents} == before


async def test_models_of_other_stages_there_are_none(anthropic: AsyncAnthropic) -> None:
    assert [one async for one in anthropic.models.list(lifecycle=["deprecated", "retired"])] == []
    assert [one async for one in anthropic.beta.models.list(lifecycle=["active"], limit=1)]
    with pytest.raises(anthropic_sdk.BadRequestError, match="foo"):
        await anthropic.models.list(extra_query={"foo": "1"})


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
    assert infos[TINY].capabilities is not None
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
