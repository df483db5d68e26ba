"""Keys for the model API: who may call, and by what id a call is known afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai as sdk
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import SecretStr, ValidationError

from mlx_manager.app import create_app as create_manager
from mlx_manager.mlx_server.app import create_app
from mlx_manager.mlx_server.audit.search import RequestFilter, search
from mlx_manager.mlx_server.config import Settings
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans, ids

MODEL = "test/tiny"
LAPTOP, AGENT = "a-key-of-the-laptop", "another-key-of-an-agent"
KEYS = {"laptop": SecretStr(LAPTOP), "agent": SecretStr(AGENT)}
ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 2,
}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module", params=[create_app, create_manager])
def locked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> Iterator[RunningServer]:
    """Both applications, each with two keys."""
    settings = settings_for(tmp_path_factory.mktemp("keys"), model_dir, api_keys=KEYS)
    with running(request.param(settings)) as server:
        yield server


@pytest.fixture
async def http(locked: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=locked.url, timeout=60) as client:
        yield client


async def test_the_sdk_is_answered_with_a_key_and_refused_with_another(
    locked: RunningServer,
) -> None:
    async with AsyncOpenAI(base_url=f"{locked.url}/v1", api_key=LAPTOP, max_retries=0) as client:
        answer = await client.chat.completions.create(**ASKED)
        wrong = client.with_options(api_key="a-key-of-nobody")
        with pytest.raises(sdk.AuthenticationError) as met:
            await wrong.chat.completions.create(**ASKED)
        with pytest.raises(sdk.AuthenticationError):
            await wrong.models.list()
    assert answer.usage is not None
    assert (met.value.code, met.value.type) == ("invalid_api_key", "invalid_request_error")
    assert "nobody" not in met.value.message


async def test_anthropics_sdk_is_answered_and_refused_in_its_own_words(
    locked: RunningServer,
) -> None:
    async with AsyncAnthropic(base_url=locked.url, api_key=LAPTOP, max_retries=0) as client:
        answer = await client.messages.create(**ASKED)
        wrong = client.with_options(api_key="a-key-of-nobody")
        for asking in (
            wrong.messages.create(**ASKED),
            wrong.messages.count_tokens(model=MODEL, messages=ASKED["messages"]),
            wrong.models.retrieve(MODEL),
        ):
            with pytest.raises(anthropic.AuthenticationError) as met:
                await asking
            assert met.value.type == "authentication_error"
            assert met.value.request_id == met.value.response.headers["X-Request-ID"]
    assert answer.usage.output_tokens == 2


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": LAPTOP},
        {"Authorization": f"Basic {LAPTOP}"},
        {"Authorization": f"Bearer {LAPTOP}x"},
        {"x-api-key": "laptop"},
        {"x-api-key": "ключ"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/nothing")]
)
async def test_without_a_key_nothing_below_v1_answers(
    http: httpx.AsyncClient, headers: dict[str, str], method: str, path: str
) -> None:
    sent = {name.encode(): value.encode() for name, value in headers.items()}
    response = await http.request(method, path, headers=sent, content=b"{")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["code"], error["request_id"]) == (
        "invalid_api_key",
        response.headers["X-Request-ID"],
    )
    assert "MLX_SERVER_API_KEYS" in error["message"]


async def test_a_key_may_come_as_anthropics_clients_send_it(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/models", headers={"x-api-key": AGENT})).status_code == 200


async def test_health_needs_no_key(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).status_code == 200


async def test_row_and_trace_know_the_key_by_its_id(
    locked: RunningServer, http: httpx.AsyncClient, spans: Spans
) -> None:
    headers = {"Authorization": f"Bearer {AGENT}"}
    response = await http.post(CHAT, json=ASKED, headers=headers)
    chats = await eventually_chats(spans)

    [row] = await rows(locked, RequestFilter(key_id="agent", request_id=request_id(response)))
    assert row.outcome == "completed"
    assert [(chat.attributes or {})["mlx.key.id"] for chat in chats] == ["agent"]
    authenticate, [server] = spans.one("authenticate"), spans.of_kind(SpanKind.SERVER)
    assert dict(authenticate.attributes or {})["mlx.key.id"] == "agent"
    assert ids(authenticate.parent) == ids(server.context)
    assert AGENT not in spans.text()


async def test_a_refusal_is_in_log_and_trace_without_what_was_sent(
    locked: RunningServer, http: httpx.AsyncClient, spans: Spans
) -> None:
    headers = {"Authorization": "Bearer somebody-else-s-secret"}
    response = await http.post(CHAT, json=ASKED, headers=headers)
    await eventually(lambda: bool(spans.of_kind(SpanKind.SERVER)))

    [row] = await rows(locked, RequestFilter(request_id=request_id(response)))
    assert (row.status, row.error_code, row.key_id) == (401, "invalid_api_key", None)
    authenticate = spans.one("authenticate")
    assert authenticate.status.status_code is StatusCode.ERROR
    assert (authenticate.attributes or {})["error.type"] == "invalid_api_key"
    assert "somebody" not in spans.text()
    [server] = spans.of_kind(SpanKind.SERVER)
    assert server.name == f"POST {CHAT}"
    assert (server.attributes or {})["http.route"] == CHAT


async def test_the_path_of_a_refusal_is_no_route(http: httpx.AsyncClient, spans: Spans) -> None:
    await http.get("/v1/models/somebody-else-s-secret-of-some-length")
    await eventually(lambda: bool(spans.of_kind(SpanKind.SERVER)))
    [server] = spans.of_kind(SpanKind.SERVER)
    assert "http.route" not in (server.attributes or {})
    assert "somebody" not in str(dict(server.attributes or {}))


@pytest.mark.parametrize(
    "keys",
    ["a b=secret-1", "a=secret", "a=secret-1,b=secret-1", "a=secret-1,a=secret-2", "secret-1"],
)
def test_keys_that_make_no_sense_are_refused_and_not_told(keys: str) -> None:
    with pytest.raises(ValidationError) as met:
        Settings.model_validate({"api_keys": keys})
    assert "secret" not in str(met.value)


def test_keys_are_read_from_one_line() -> None:
    settings = Settings.model_validate({"api_keys": " laptop = a-long=secret, agent=another-one,"})
    assert settings.api_keys == {
        "laptop": SecretStr("a-long=secret"),
        "agent": SecretStr("another-one"),
    }


async def rows(server: RunningServer, wanted: RequestFilter) -> list[Any]:
    await eventually(lambda: bool(server.audited(wanted.request_id or "")))
    async with server.state.database.sessions() as session:
        return list(await search(session, wanted, 10))


async def eventually_chats(spans: Spans) -> list[Any]:
    def chats() -> list[Any]:
        # Not the SDK's own, which other tests may have instrumented.
        return [s for s in spans.named(f"chat {MODEL}") if s.kind is SpanKind.INTERNAL]

    await eventually(lambda: bool(chats()) and bool(spans.of_kind(SpanKind.SERVER)))
    return chats()


def request_id(response: httpx.Response) -> str:
    found: str = response.headers["X-Request-ID"]
    return found
