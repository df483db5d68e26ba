"""Conversations that share their instructions go on from behind them, where a model's state can't be cut."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from openai import AsyncOpenAI

from mlx_manager.mlx_server.app import create_app
from tests.engine.models import WITH_STATES, write_model
from tests.support.running import RunningServer, running, settings_for

INSTRUCTIONS = "\n".join(["You are the assistant of one long test."] * 30)


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose models' layers keep states, which are of one place only."""
    folder = tmp_path_factory.mktemp("borders")
    for kind in WITH_STATES:
        write_model(kind, folder / "models" / "test" / kind)
    settings = settings_for(folder, folder / "models", prefix_cache_mib=64, max_loaded_models=1)
    with running(create_app(settings)) as server:
        yield server


async def cached_tokens(client: AsyncOpenAI, model: str, question: str) -> int:
    """How many tokens of such a conversation's prompt were stored when it came."""
    answer = await client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": question},
        ],
        max_tokens=2,
    )
    assert answer.usage
    assert answer.usage.prompt_tokens_details
    return answer.usage.prompt_tokens_details.cached_tokens or 0


@pytest.mark.parametrize("kind", WITH_STATES)
async def test_another_conversation_goes_on_from_behind_the_instructions_that_it_shares(
    stateful: RunningServer, kind: str
) -> None:
    model, url = f"test/{kind}", f"{stateful.url}/v1"
    # The border lies behind the instructions themselves; what marks the next message is read again.
    shared = f"<|im_start|>system\n{INSTRUCTIONS}"
    async with httpx.AsyncClient(timeout=60) as http:
        told = await http.post(f"{url}/tokenize", json={"model": model, "prompt": shared})
    questions = ["Why is it so? " * 20, "How can it be? " * 20]
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        found = [await cached_tokens(client, model, question) for question in questions]
    assert found == [0, told.json()["count"]]
    assert found[1] > 200
