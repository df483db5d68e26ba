"""Answers that look their next tokens up: the same as without, told in the trace."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan

from mlx_manager.mlx_server.app import create_app
from mlx_manager.observability.setup import TelemetryOptions, configure
from tests.conftest import TINY
from tests.support.running import RunningServer, running, settings_for
from tests.support.spans import Spans, UntracedTransport

TOKENS = 200
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {
    "model": TINY,
    "messages": [{"role": "user", "content": "Count to a million."}],
    "max_tokens": TOKENS,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def looking_up(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> Iterator[RunningServer]:
    settings = settings_for(tmp_path_factory.mktemp("lookup"), model_dir, lookup_tokens=8)
    configure(TelemetryOptions("mlx-test"))
    with running(create_app(settings)) as server:
        yield server


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 0.1, "seed": 3, "logprobs": True}]
)
async def test_an_answer_is_that_of_a_server_without_and_says_what_was_looked_up(
    server: RunningServer, looking_up: RunningServer, spans: Spans, sampling: dict[str, Any]
) -> None:
    async with httpx.AsyncClient(transport=UntracedTransport(), timeout=60) as client:
        usual, quick = [
            (await client.post(one.url + CHAT, json=BODY | sampling)).json()
            for one in (server, looking_up)
        ]
    assert quick["choices"][0]["message"] == usual["choices"][0]["message"]
    assert quick["usage"]["completion_tokens"] == TOKENS
    if "logprobs" in sampling:
        assert len(quick["choices"][0]["logprobs"]["content"]) == TOKENS
    decode = attributes_of("decode", await spans.of_answer(quick["id"]))
    assert decode["mlx.decode.proposed_tokens"] >= decode["mlx.decode.accepted_tokens"] > 0
    assert decode["mlx.batch.width_max"] == 1
    usual_decode = attributes_of("decode", await spans.of_answer(usual["id"]))
    assert "mlx.decode.proposed_tokens" not in usual_decode


async def test_the_parts_of_a_stream_come_several_tokens_at_a_time(
    looking_up: RunningServer,
) -> None:
    body = BODY | {"stream": True, "temperature": 0}
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", looking_up.url + CHAT, json=body) as answer,
    ):
        parts = [line async for line in answer.aiter_lines() if line.startswith("data: {")]
    assert 1 < len(parts) < TOKENS


def attributes_of(name: str, spans: list[ReadableSpan]) -> dict[str, Any]:
    [span] = [span for span in spans if span.name == name]
    return dict(span.attributes or {})


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.1, "seed": 3}])
async def test_a_stream_that_is_alone_goes_on_when_its_engine_is_killed(
    looking_up: RunningServer, spans: Spans, sampling: dict[str, Any]
) -> None:
    body = BODY | sampling | {"stream": True, "max_tokens": 18 * TOKENS}
    whole, _ = await heard(looking_up, body)
    broken, answer_id = await heard(looking_up, body, kill_after=8)
    assert broken == whole
    found = await spans.of_answer(answer_id)
    # What the engine tells that went on: it has looked up, too.
    assert attributes_of("decode", found)["mlx.decode.accepted_tokens"] > TOKENS
    resume = attributes_of("resume", found)
    assert resume["mlx.resume.cause"] == "was killed by signal 9"
    assert 0 < resume["mlx.resume.after_token"] < 17 * TOKENS


async def heard(
    server: RunningServer, body: dict[str, Any], kill_after: int | None = None
) -> tuple[str, str]:
    """Return the text of a stream and its id, whose engine may be killed after some of its parts."""
    text, answer_id, parts = "", "", 0
    async with (
        httpx.AsyncClient(transport=UntracedTransport(), timeout=120) as client,
        client.stream("POST", server.url + CHAT, json=body) as answer,
    ):
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            part = json.loads(line.removeprefix("data: "))
            answer_id = part["id"]
            text += "".join(choice["delta"].get("content") or "" for choice in part["choices"])
            parts += 1
            if parts == kill_after:
                kill_engine(server)
    return text, answer_id


def kill_engine(server: RunningServer) -> None:
    engine = server.resident(TINY).engine
    assert engine is not None
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
