"""`model@adapter`: a LoRA adapter that a request names, or that the settings give a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import OpenAI

from mlx_manager.mlx_server.app import create_app
from mlx_manager.mlx_server.model_settings import ModelSettings
from tests.support.adapters import make_fused_model, make_random_adapter
from tests.support.running import RunningServer, running, settings_for
from tests.support.spans import Spans
from tools.random_model import Shape, make_random_model

BASE, FUSED, EQUIPPED = "test/base", "test/fused", "test/equipped"
NAME = "deep/lora"
WITH = f"{BASE}@{NAME}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a model, an adapter for it, both in one, and a model that has the adapter by its settings."""
    folder = tmp_path_factory.mktemp("adapted")
    models, adapters = folder / "models", folder / "adapters"
    base = make_random_model(models / BASE, Shape(seed=5))
    make_random_model(models / EQUIPPED, Shape(seed=5))
    make_random_model(models / "test" / "other", Shape(hidden=32))
    make_random_model(models / "test" / "lonely")
    make_random_adapter(base, BASE, adapters / NAME)
    make_fused_model(base, models / FUSED)
    settings = settings_for(
        folder,
        models,
        adapter_dirs=(adapters,),
        models={
            EQUIPPED: ModelSettings(adapter=NAME, aliases=("equipped",)),
            "test/lonely": ModelSettings(adapter="absent"),
        },
        max_loaded_models=9,
        prefix_cache_mib=8,
    )
    with running(create_app(settings)) as server:
        yield server


@pytest.fixture
def openai(server: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def answer(openai: OpenAI, model: str) -> tuple[str, list[float]]:
    """A greedy answer: its tokens and their log-probabilities."""
    done = openai.completions.create(
        model=model, prompt="Why does it", max_tokens=24, temperature=0, logprobs=0
    )
    logprobs = done.choices[0].logprobs
    assert logprobs
    assert logprobs.tokens
    return "".join(logprobs.tokens), [float(one or 0) for one in logprobs.token_logprobs or ()]


def test_an_adapter_changes_answers_as_its_fused_weights_do(openai: OpenAI) -> None:
    without, adapted, fused = (answer(openai, model) for model in (BASE, WITH, FUSED))
    assert adapted[0] == fused[0] != without[0]
    assert adapted[1] == pytest.approx(fused[1], abs=1e-4)
    assert answer(openai, WITH) == adapted, "and the same each time"
    assert answer(openai, BASE) == without, "the model without it is left as it was"


def test_an_answer_names_the_adapter_and_has_a_fingerprint_of_its_own(openai: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    plain, adapted, equipped = (
        openai.chat.completions.create(model=model, messages=messages, max_tokens=1)
        for model in (BASE, WITH, "equipped")
    )
    assert (adapted.model, equipped.model) == (WITH, EQUIPPED)
    assert len({plain.system_fingerprint, adapted.system_fingerprint}) == 2


def test_settings_give_a_model_its_adapter(openai: OpenAI) -> None:
    equipped, fused = answer(openai, "equipped"), answer(openai, FUSED)
    assert equipped[0] == fused[0]
    assert equipped[1] == pytest.approx(fused[1], abs=1e-4)


def test_a_model_is_listed_with_the_adapter_that_was_trained_on_it(openai: OpenAI) -> None:
    ids = {model.id for model in openai.models.list()}
    assert {BASE, WITH, EQUIPPED, "equipped"} <= ids
    assert "test/lonely" not in ids, "its adapter is not there"
    assert openai.models.retrieve(WITH).id == WITH


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (f"{BASE}@no", f"no adapter 'no' here.*: {NAME}"),
        (f"test/none@{NAME}", "no model 'test/none@deep/lora'"),
        ("test/lonely", "set to have the adapter 'absent'"),
    ],
)
def test_an_unknown_adapter_is_a_404_that_names_those_there_are(
    openai: OpenAI, model: str, said: str
) -> None:
    with pytest.raises(sdk.NotFoundError, match=said):
        answer(openai, model)


def test_an_adapter_of_another_model_is_refused_in_mlx_lm_s_words(openai: OpenAI) -> None:
    with pytest.raises(sdk.InternalServerError, match="does not match") as refused:
        answer(openai, f"test/other@{NAME}")
    assert refused.value.status_code == 503


async def test_the_load_s_span_says_which_adapter(server: RunningServer, spans: Spans) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        await client.post("/admin/models/unload", json={"model": WITH})
        await client.post("/v1/completions", json={"model": WITH, "prompt": "x", "max_tokens": 1})
    await server.close_books()
    whole = [one.attributes or {} for one in spans.named("model.load") if one.status.is_unset]
    assert [one["mlx.model.adapter"] for one in whole] == [NAME]
