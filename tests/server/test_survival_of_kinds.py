"""Answers of every kind of model, and of one with an adapter, go on as they would have when their engine is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from functools import partial

import pytest
from openai import AsyncOpenAI

from mlx_manager.mlx_server.app import create_app
from tests.engine.models import MODEL_KINDS, write_model
from tests.support.adapters import make_random_adapter
from tests.support.running import RunningServer, eventually, running, settings_for

TOKENS = 200
STREAMS = 6
ADAPTED = "test/plain@test/lora"
# A window has 48 tokens: those of these prompts are full early, late, or while the answer is made.
PROMPTS = ["Why?", "Why is that so, and not otherwise? " * 3, "And then? " * 40]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("kinds")
    for kind in MODEL_KINDS:
        write_model(kind, folder / "models" / "test" / kind)
    base = folder / "models" / "test" / "plain"
    make_random_adapter(base, "test/plain", folder / "adapters" / "test" / "lora", seed=11)
    settings = settings_for(
        folder,
        folder / "models",
        adapter_dirs=(folder / "adapters",),
        prefix_cache_mib=8,
        max_loaded_models=1,
        models={"test/quantised": {"kv_bits": 8}},
    )
    with running(create_app(settings)) as server:
        yield server


async def answer(client: AsyncOpenAI, model: str, number: int) -> tuple[list[str], list[float]]:
    """The tokens of a streamed answer, greedy or seeded, with their log-probabilities."""
    tokens, logprobs = list[str](), list[float]()
    stream = await client.completions.create(
        model=model,
        prompt=PROMPTS[number % len(PROMPTS)],
        max_tokens=TOKENS,
        temperature=number % 2,
        seed=number,
        logprobs=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        told = chunk.choices[0].logprobs
        tokens += (told.tokens if told else None) or []
        logprobs += [one or 0.0 for one in (told.token_logprobs if told else None) or []]
    return tokens, logprobs


def are_in_their_answers(server: RunningServer, model: str) -> bool:
    engine = server.resident(model).engine
    made = [one.received_tokens for one in engine._streams.values()] if engine else []
    # These are answered one after the other.
    least = max if model == "test/chunked" else min
    return len(made) == STREAMS and least(made) > TOKENS / 4


@pytest.mark.parametrize("model", [*(f"test/{kind}" for kind in MODEL_KINDS), ADAPTED])
async def test_answers_go_on_token_for_token_whatever_the_model_keeps(
    server: RunningServer, model: str
) -> None:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        whole = await asyncio.gather(*(answer(client, model, one) for one in range(STREAMS)))
        asked = asyncio.gather(*(answer(client, model, one) for one in range(STREAMS)))
        await eventually(partial(are_in_their_answers, server, model))
        engine = server.resident(model).engine
        assert engine is not None
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        broken = await asked

    assert server.resident(model).restarts == 1
    assert {len(tokens) for tokens, _ in whole} == {TOKENS}
    assert min(len(set(tokens)) for tokens, _ in whole) > 5, "none repeats itself"
    for (tokens, logprobs), (same_tokens, same_logprobs) in zip(whole, broken, strict=True):
        assert same_tokens == tokens
        assert same_logprobs == pytest.approx(logprobs, abs=1e-3)
