"""Almost valid bodies: each is answered or refused in the words of its API, and none leaves anything behind.

`make fuzz` sends ten times as many, `make fuzz ARGS=...` says how many and from which seed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from mlx_manager.mlx_server.app import create_app
from mlx_manager.mlx_server.engine.messages import Vitals
from mlx_manager.mlx_server.workers.process import EngineProcess
from mlx_manager.wire.anthropic import parameters as anthropic_parameters
from mlx_manager.wire.anthropic.schema import CountTokensBody, MessagesBody
from mlx_manager.wire.openai import parameters
from mlx_manager.wire.openai.embeddings import EmbeddingsBody
from mlx_manager.wire.openai.responses import parameters as response_parameters
from mlx_manager.wire.openai.responses.schema import ResponsesBody
from mlx_manager.wire.openai.schema import ChatCompletionBody, CompletionBody
from mlx_manager.wire.openai.tokens import DetokenizeBody, TokenizeBody
from tests.server.fuzzing import Body, bodies
from tests.server.valid_bodies import ENCODER, MODEL, REFUSED, VALID
from tests.support.encoders import make_encoder
from tests.support.running import RunningServer, eventually, running, settings_for
from tools.random_model import Shape, make_random_model

COUNT = int(os.environ.get("FUZZ_BODIES", "1000"))
SEED = int(os.environ.get("FUZZ_SEED", "20261125"))
AT_ONCE = 12
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of its own, so that nothing else is in its audit log and engines."""
    folder = tmp_path_factory.mktemp("fuzz")
    models: Path = folder / "models"
    # A short context bounds the answers of bodies that lost their `max_tokens`.
    make_random_model(models / MODEL, Shape(context=1024))
    make_encoder(models / ENCODER)
    settings = settings_for(folder, models, max_body_bytes=2**20)
    with running(create_app(settings)) as server:
        yield server


def last_names(paths: Iterable[str]) -> set[str]:
    """The names of fields from paths as the tables have them: `messages[].content[].index` is `index`."""
    return {path.split(".")[-1].removesuffix("[]") for path in paths}


def names_in(value: Any) -> Iterator[str]:
    """All names of fields in a body, at any depth."""
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from names_in(inner)
    if isinstance(value, dict):
        yield from value


def names_of(body: type[BaseModel], *tables: Iterable[str]) -> set[str]:
    """What a body's schema names, and what the tables of parameters have besides."""
    return set(body.model_fields).union(*map(last_names, tables))


OPENAI = (parameters.HARMLESS, parameters.NEUTRAL_VALUES)
OF_RESPONSES = (response_parameters.HARMLESS, response_parameters.NEUTRAL_VALUES)
ANTHROPIC = (anthropic_parameters.HARMLESS, anthropic_parameters.NEUTRAL_VALUES)
# Labels of one endpoint may be sent to another of the same API, which passes over them in the same way.
DOCUMENTED: dict[str, set[str]] = {
    "/v1/chat/completions": names_of(ChatCompletionBody, *OPENAI),
    "/v1/completions": names_of(CompletionBody),
    "/v1/responses": names_of(ResponsesBody, *OF_RESPONSES),
    "/v1/responses/input_tokens": names_of(ResponsesBody) - {"background", "previous_response_id"},
    "/v1/embeddings": names_of(EmbeddingsBody),
    "/v1/messages": names_of(MessagesBody, *ANTHROPIC),
    "/v1/messages/count_tokens": names_of(
        CountTokensBody, ANTHROPIC[0], anthropic_parameters.HARMLESS_TO_A_COUNT
    ),
    "/v1/tokenize": names_of(TokenizeBody),
    "/v1/detokenize": names_of(DetokenizeBody),
}


def shape_is_right(path: str, error: Any) -> bool:
    """Whether an error looks as the clients of this path read it."""
    match path.split("/")[1:]:
        case ["otlp", *_]:
            return isinstance(error.get("message"), str)
        case ["v1", "messages", *_]:
            inner = error.get("error", {})
            return error.get("type") == "error" and _are_texts(inner, "type", "message")
    return _are_texts(error.get("error", {}), "type", "message", "code")


def _are_texts(value: Any, *names: str) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)


def complaint_of(body: Body, response: httpx.Response) -> str | None:
    """What is wrong with an answer; None when it is as it must be."""
    if response.status_code == 200:
        return _stream_complaint(response) if _is_stream(response) else None
    if response.status_code >= 500:
        return f"status {response.status_code}"
    try:
        error = response.json()
    except ValueError:
        return "an error that is not JSON"
    return None if shape_is_right(body.path, error) else "an error of another shape"


def _is_stream(response: httpx.Response) -> bool:
    return response.headers["content-type"].startswith("text/event-stream")


def _stream_complaint(response: httpx.Response) -> str | None:
    """A stream has to end as its API ends it; an error in it would be the server's own."""
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    if not events:
        return "an empty stream"
    if any('"error"' in event and json.loads(event).get("error") for event in events[-2:]):
        return f"an error in the stream: {events[-2:]}"
    return None if _is_end(events[-1]) else f"a stream ends with {events[-1]}"


def _is_end(event: str) -> bool:
    """Whether it is what a stream of one of the APIs ends with; a response may have come to `max_output_tokens`."""
    if event == "[DONE]":
        return True
    return json.loads(event)["type"] in (
        "message_stop",
        "response.completed",
        "response.incomplete",
    )


async def send_all(client: httpx.AsyncClient, count: int, seed: int) -> list[str]:
    """Send the bodies, some at once, and return what is wrong with the answers."""
    waiting, complaints = iter(list(enumerate(bodies(count, seed)))), list[str]()

    async def send() -> None:
        for number, body in waiting:
            try:
                response = await client.post(body.path, content=body.content, headers=JSON)
                complaint = complaint_of(body, response)
                said = response.text[:300]
            except httpx.HTTPError as error:
                complaint, said = f"no answer: {error!r}", ""
            if complaint:
                shown = body.content[:1500]
                complaints.append(f"{number} {body.path} {complaint}\n  {shown!r}\n  {said}")

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    return complaints


async def engine_at_rest(engine: EngineProcess | None) -> Vitals:
    """Return what an engine says of itself when nothing is asked of it any more."""
    assert engine is not None
    last = engine.vitals
    await eventually(lambda: engine.vitals is not last)
    assert engine.vitals is not None
    return engine.vitals


@pytest.fixture
async def client(server: RunningServer) -> Any:
    # Connections that nobody used for so long are not used again: this server closes them after 5 s, maybe just then.
    limits = httpx.Limits(keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        yield client


async def test_what_the_bodies_are_made_from_is_answered(client: httpx.AsyncClient) -> None:
    for path, valid in VALID.items():
        for body in valid:
            response = await client.post(path, json=body)
            assert response.status_code == 200, (path, body, response.text)


async def test_what_is_refused_is_refused_for_the_model_or_what_is_not_there(
    client: httpx.AsyncClient,
) -> None:
    for path, refused in REFUSED.items():
        for body in refused:
            response = await client.post(path, json=body)
            assert response.status_code in (400, 404), (path, body, response.text)


def test_every_documented_parameter_is_in_a_body() -> None:
    for path, documented in DOCUMENTED.items():
        found = {name for body in (*VALID[path], *REFUSED.get(path, ())) for name in names_in(body)}
        assert documented - found == set(), path


async def test_no_body_brings_the_server_out_of_its_words_or_leaves_anything_behind(
    server: RunningServer, client: httpx.AsyncClient
) -> None:
    engine = server.resident(MODEL).engine
    complaints = await send_all(client, COUNT, SEED)
    assert not complaints, f"{len(complaints)} of {COUNT}:\n" + "\n".join(complaints[:40])
    assert server.resident(MODEL).engine is engine, "the engine had to be started anew"
    await eventually(lambda: server.active(MODEL) == 0 and server.active(ENCODER) == 0)
    await server.close_books()
    await eventually(
        lambda: not server._query("SELECT id FROM audit_log WHERE outcome = ?", "running")
    )
    answer = await client.post("/v1/chat/completions", json=VALID["/v1/chat/completions"][0])
    assert answer.status_code == 200
    assert (await client.get("/health")).status_code == 200
    vitals = await engine_at_rest(engine)
    assert (vitals.running, vitals.waiting) == (0, 0), "a row is stuck"
