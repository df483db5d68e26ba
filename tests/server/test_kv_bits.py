"""`kv_bits` of one model: set in the settings, planned for before it is loaded, seen by callers and administrators."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from mlx_manager.app import create_app
from mlx_manager.config import Settings
from mlx_manager.mlx_server.model_settings import ModelSettings
from tests.engine.models import write_model
from tests.support.encoders import make_encoder
from tests.support.running import RunningServer, running, settings_for, wait_until

WHOLE, QUANTISED, SLIDING = "test/plain", "test/quantised", "test/sliding"
VECTORS = "test/vectors"
QUESTION = "Why is that so, and not otherwise? " * 20
CONTEXT_TOKENS = 2048


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("bits")
    models = folder / "models"
    # The same weights twice.
    for name, kind in ((WHOLE, "quantised"), (QUANTISED, "quantised"), (SLIDING, "sliding")):
        write_model(kind, models / Path(name))
    make_encoder(models / VECTORS)
    settings = settings_for(
        folder,
        models,
        models={
            WHOLE: ModelSettings(context_tokens=CONTEXT_TOKENS),
            QUANTISED: ModelSettings(context_tokens=CONTEXT_TOKENS, kv_bits=8),
            SLIDING: ModelSettings(kv_bits=4),
            VECTORS: ModelSettings(kv_bits=8),
        },
        prefix_cache_mib=8,
    )
    with running(create_app(settings, Settings())) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def answered(client: openai.OpenAI, model: str) -> Any:
    return client.completions.create(
        model=model,
        prompt=QUESTION,
        max_tokens=40,
        temperature=0,
        logprobs=0,
        extra_body={"ignore_eos": True},
    )


def listed(server: RunningServer) -> dict[str, Any]:
    report = httpx.get(f"{server.url}/admin/models").json()
    return {one["id"]: one for one in report["models"]}


def stored_bytes(server: RunningServer, model: str) -> int:
    return int(listed(server)[model]["held_bytes"].get("prefix_cache", 0))


def test_a_model_answers_nearly_as_it_does_with_whole_ones_in_far_less_memory(
    server: RunningServer, client: openai.OpenAI
) -> None:
    whole, quantised = answered(client, WHOLE), answered(client, QUANTISED)
    again = answered(client, QUANTISED)
    assert again.choices[0].text == quantised.choices[0].text
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    assert whole.system_fingerprint != quantised.system_fingerprint
    first, other = (one.choices[0].logprobs for one in (whole, quantised))
    assert first.tokens[0] == other.tokens[0]
    assert other.token_logprobs[0] == pytest.approx(first.token_logprobs[0], abs=0.2)
    assert other.token_logprobs[0] != first.token_logprobs[0]

    models = listed(server)
    assert [models[one]["kv_bits"] for one in (WHOLE, QUANTISED, SLIDING)] == [None, 8, 4]
    share = models[QUANTISED]["reserved_bytes"]["kv"] / models[WHOLE]["reserved_bytes"]["kv"]
    # 32 numbers of a group in 8 words, with two of scale and bias.
    assert share == pytest.approx(10 / 32, abs=0.01)
    # Engines say what they hold once a second.
    wait_until(lambda: all(stored_bytes(server, one) for one in (WHOLE, QUANTISED)))
    held = [stored_bytes(server, one) for one in (QUANTISED, WHOLE)]
    assert held[0] / held[1] == pytest.approx(10 / 32, abs=0.02)


def test_the_first_page_says_which_models_have_it(server: RunningServer) -> None:
    page = httpx.get(server.url).text
    tags = re.findall(r"<code>(test/\w+)</code>(?: <span class=\"tag\"[^>]*>([^<]+)</span>)?", page)
    assert dict(tags) == {
        WHOLE: "",
        QUANTISED: "8-bit KV",
        SLIDING: "4-bit KV",
        VECTORS: "8-bit KV",
    }


def test_a_model_that_can_not_have_it_is_refused_with_what_to_do(
    server: RunningServer, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.APIStatusError) as failed:
        answered(client, SLIDING)
    assert "could not be loaded: kv_bits is 4, and not all layers" in failed.value.message
    assert "Leave kv_bits out for it" in failed.value.message
    with (
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as other,
        pytest.raises(anthropic.APIStatusError, match="Leave kv_bits out for it"),
    ):
        other.messages.create(
            model=SLIDING, max_tokens=4, messages=[{"role": "user", "content": "Hi"}]
        )
    with pytest.raises(openai.APIStatusError, match="kv_bits is for models that chat"):
        client.embeddings.create(model=VECTORS, input="Hi")
