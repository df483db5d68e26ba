"""Time limits: changed while the manager runs, kept over a restart, and kept to."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk
from opentelemetry.trace import StatusCode

from mlx_manager.app import create_app
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans, spans

__all__ = ["spans"]

MODEL = "test/tiny"
PATH = "/api/settings/timeouts"
BUILT_IN = {"chat_s": 900, "completions_s": 600, "embeddings_s": 120}
DEFAULT = dict.fromkeys(BUILT_IN, "default")
SHORT_S = 0.2
# Greedy, this model runs in circles that have no end token in them.
LONG: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Count to a million."}],
    "max_tokens": 3000,
    "temperature": 0,
}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "x", "temperature": 0}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    app = create_app(settings_for(tmp_path_factory.mktemp("timeouts"), model_dir))
    with running(app) as server:
        yield server


@pytest.fixture
def manager(shared: RunningServer) -> RunningServer:
    """A manager with its model in memory and no limit changed."""
    put(shared, dict.fromkeys(BUILT_IN))
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    assert httpx.post(f"{shared.url}/v1/completions", json=body, timeout=60).status_code == 200
    return shared


@pytest.fixture
async def openai(manager: RunningServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{manager.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


def get(manager: RunningServer) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(manager.url + PATH).json()
    return answer


def put(manager: RunningServer, body: object) -> httpx.Response:
    return httpx.put(manager.url + PATH, json=body)


def test_the_built_in_limits_are_told(manager: RunningServer) -> None:
    assert get(manager) == BUILT_IN | {"source": DEFAULT}


def test_a_change_is_told_and_leaves_the_others(manager: RunningServer) -> None:
    answer = put(manager, {"chat_s": 33.5})
    assert answer.status_code == 200
    assert answer.json() == get(manager)
    assert get(manager) == BUILT_IN | {"chat_s": 33.5, "source": DEFAULT | {"chat_s": "stored"}}


def test_null_takes_a_change_back(manager: RunningServer) -> None:
    put(manager, {"chat_s": 33, "completions_s": 44})
    put(manager, {"chat_s": None})
    assert get(manager)["chat_s"] == 900
    assert get(manager)["completions_s"] == 44


@pytest.mark.parametrize("value", [0, -1, 86_400.1, "900", True, [900], {}])
@pytest.mark.parametrize("field", BUILT_IN)
def test_a_limit_that_makes_no_sense_is_refused_by_name_and_changes_nothing(
    manager: RunningServer, field: str, value: object
) -> None:
    answer = put(manager, {"chat_s": 5, field: value})
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["param"] == field
    assert get(manager) == BUILT_IN | {"source": DEFAULT}


def test_an_unknown_field_is_refused_by_name(manager: RunningServer) -> None:
    answer = put(manager, {"chat": 900})
    assert (answer.status_code, answer.json()["param"]) == (422, "chat")


def test_a_change_survives_a_restart_and_wins_over_the_environment(
    tmp_path: Path, model_dir: Path
) -> None:
    settings = settings_for(tmp_path, model_dir, chat_timeout_s=77, completion_timeout_s=88)
    with running(create_app(settings)) as first:
        before = get(first)
        put(first, {"chat_s": 5})
    with running(create_app(settings)) as second:
        after = get(second)
    own = {"chat_s": "environment", "completions_s": "environment", "embeddings_s": "default"}
    assert before == {"chat_s": 77, "completions_s": 88, "embeddings_s": 120, "source": own}
    assert after == before | {"chat_s": 5, "source": own | {"chat_s": "stored"}}


def test_what_can_not_be_stored_does_not_hold(tmp_path: Path, model_dir: Path) -> None:
    with running(create_app(settings_for(tmp_path, model_dir))) as manager:
        with sqlite3.connect(tmp_path / "server.db") as database:
            database.execute("ALTER TABLE settings RENAME TO elsewhere")
        database.close()
        answer = put(manager, {"chat_s": 5})
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert get(manager) == BUILT_IN | {"source": DEFAULT}


async def read(
    stream: AsyncIterable[ChatCompletionChunk], chunks: list[ChatCompletionChunk]
) -> None:
    async for chunk in stream:
        chunks.append(chunk)


async def timed_out(manager: RunningServer, spans: Spans, request_id: str, status: int) -> None:
    """The work has ended in the engine, and audit and trace call it a timeout."""
    await eventually(lambda: manager.active(MODEL) == 0, timeout_s=5)
    await eventually(lambda: bool(manager.audited(request_id)))
    async with httpx.AsyncClient(base_url=manager.url) as http:
        row = (await http.get(f"/api/requests/{request_id}")).json()
    assert (row["status"], row["outcome"]) == (status, "failed")
    assert (row["error_code"], row["error_type"]) == ("request_timeout", "server_error")
    chat = await spans.chat_in(row["trace_id"])
    assert (chat.attributes or {})["error.type"] == "request_timeout"
    assert chat.status.status_code is StatusCode.ERROR
    assert (chat.attributes or {}).get("mlx.cancelled") is None


async def test_a_whole_answer_that_takes_too_long_is_a_504(
    manager: RunningServer, openai: AsyncOpenAI, spans: Spans
) -> None:
    put(manager, {"chat_s": SHORT_S})
    with pytest.raises(sdk.InternalServerError) as met:
        await openai.chat.completions.create(**LONG)
    error = met.value
    assert (error.status_code, error.code, error.type) == (504, "request_timeout", "server_error")
    assert "0.2 s" in error.message
    await timed_out(manager, spans, str(error.request_id), 504)


async def test_a_stream_that_takes_too_long_ends_with_an_error_event(
    manager: RunningServer, openai: AsyncOpenAI, spans: Spans
) -> None:
    # Long enough for a first token on a busy machine, and shorter than the answer.
    put(manager, {"chat_s": 5 * SHORT_S})
    stream = await openai.chat.completions.create(**LONG, stream=True)
    chunks: list[ChatCompletionChunk] = []
    with pytest.raises(sdk.APIError) as met:
        await read(stream, chunks)
    assert any(chunk.choices[0].delta.content for chunk in chunks)
    assert (met.value.code, met.value.type) == ("request_timeout", "server_error")
    await timed_out(manager, spans, stream.response.headers["X-Request-ID"], 200)


async def test_the_next_request_has_the_new_limit_and_the_other_endpoint_its_own(
    manager: RunningServer, openai: AsyncOpenAI
) -> None:
    put(manager, {"chat_s": SHORT_S})
    text = await openai.completions.create(**TEXT, max_tokens=2000)
    put(manager, {"completions_s": SHORT_S, "chat_s": None})
    with pytest.raises(sdk.InternalServerError) as met:
        await openai.completions.create(**TEXT, max_tokens=3000)
    answer = await openai.chat.completions.create(**LONG | {"max_tokens": 10})
    assert text.usage is not None
    assert text.usage.completion_tokens == 2000
    assert met.value.code == "request_timeout"
    assert answer.usage is not None


async def test_a_running_request_keeps_the_limit_that_it_began_with(
    manager: RunningServer, openai: AsyncOpenAI
) -> None:
    stream = await openai.chat.completions.create(**LONG | {"max_tokens": 600}, stream=True)
    put(manager, {"chat_s": 0.001})
    finish = [chunk.choices[0].finish_reason async for chunk in stream][-1]
    assert finish == "length"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_a_limit_that_is_no_number_is_refused(manager: RunningServer, value: str) -> None:
    headers = {"Content-Type": "application/json"}
    body = f'{{"chat_s": {value}}}'
    answer = httpx.put(manager.url + PATH, content=body, headers=headers)
    assert (answer.status_code, answer.json()["param"]) == (422, "chat_s")
    assert json.loads(answer.text)["code"] == "invalid_request"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
