"""Marked secrets through every route of both applications and every way to fail, and then a search of every sink."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import signal
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import ENDLESS_TOKENS, TINY
from tests.observability.watched import (
    ENCODER,
    ENDLESS_PATH,
    LOG_FORMATS,
    MAX_BODY_BYTES,
    Application,
    routes,
    watched,
)
from tests.support.running import wait_until


@dataclass
class Secrets:
    """Strings that occur nowhere else; each says where it was put."""

    made: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    def new(self, place: str) -> str:
        secret = f"zq{next(self.numbers):04d}-marked-{place}"
        self.made.append(secret)
        return secret

    def found_in(self, text: bytes) -> list[str]:
        return [secret for secret in self.made if secret.encode() in text]


@pytest.fixture(params=LOG_FORMATS)
def main(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def application(main: str, tmp_path: Path, model_dir: Path) -> Iterator[Application]:
    with watched(main, tmp_path, model_dir) as running:
        yield running


def headers(secrets: Secrets) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {secrets.new('authorization')}",
        "Cookie": f"session={secrets.new('cookie')}",
        "x-api-key": secrets.new("api-key"),
        "Proxy-Authorization": f"Basic {secrets.new('proxy')}",
        # Well-formed ones are recorded: that is what they are for.
        "X-Request-ID": f"{secrets.new('request-id')} (not an id)",
        "X-Session-ID": f"sk-{secrets.new('session-id')}",
        "baggage": f"secret={secrets.new('baggage')}",
        "Forwarded": f"for={secrets.new('forwarded')}",
        "User-Agent": secrets.new("user-agent"),
        "Referer": f"http://127.0.0.1/?token={secrets.new('referer')}",
        "Origin": f"http://{secrets.new('origin')}",
        "OpenAI-Organization": secrets.new("organization"),
        "anthropic-beta": secrets.new("beta"),
        "X-Of-A-Proxy": secrets.new("any-other-header"),
    }


def query(secrets: Secrets) -> dict[str, str]:
    return {name: secrets.new(f"query-{name}") for name in ("api_key", "token", "q")}


def chat(secrets: Secrets, **changes: Any) -> dict[str, Any]:
    return {
        "model": TINY,
        "messages": [
            {"role": "system", "content": secrets.new("system")},
            {"role": "user", "content": secrets.new("user-text"), "name": "n"},
        ],
        "max_tokens": 24,
        "user": secrets.new("user"),
        "metadata": {"key": secrets.new("metadata")},
        "safety_identifier": secrets.new("safety"),
        **changes,
    }


def message(secrets: Secrets, **changes: Any) -> dict[str, Any]:
    """A body of Anthropic's API, with a secret in every kind of block."""
    call = {"type": "tool_use", "id": "toolu_1", "name": "look"}
    thinking = {"type": "thinking", "thinking": secrets.new("thought"), "signature": "eA=="}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": secrets.new("result")}
    return {
        "model": TINY,
        "max_tokens": 8,
        "system": [{"type": "text", "text": secrets.new("system-block")}],
        "messages": [
            {"role": "user", "content": secrets.new("user-turn")},
            {
                "role": "assistant",
                "content": [thinking, call | {"input": {"at": secrets.new("call")}}],
            },
            {"role": "user", "content": [result, {"type": "text", "text": secrets.new("block")}]},
        ],
        "metadata": {"user_id": secrets.new("user-id")},
        **changes,
    }


def response(secrets: Secrets, **changes: Any) -> dict[str, Any]:
    """A body of the Responses API, with a secret in every kind of item. It is not to be stored."""
    thought = {"type": "reasoning_text", "text": secrets.new("reasoning")}
    call = {"at": secrets.new("response-call")}
    return {
        "model": TINY,
        "max_output_tokens": 24,
        "store": False,
        "instructions": secrets.new("instructions"),
        "input": [
            {"role": "user", "content": secrets.new("input-text")},
            {"type": "reasoning", "summary": [], "content": [thought]},
            {
                "type": "function_call",
                "call_id": "c1",
                "name": "look",
                "arguments": json.dumps(call),
            },
            {"type": "function_call_output", "call_id": "c1", "output": secrets.new("output")},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": secrets.new("input-part")}],
            },
        ],
        "metadata": {"key": secrets.new("response-metadata")},
        "user": secrets.new("response-user"),
        "prompt_cache_key": secrets.new("cache-key"),
        **changes,
    }


def bodies(secrets: Secrets) -> Iterator[bytes]:
    """What an endpoint takes, and every way to get it wrong."""
    tool = {"type": "function", "function": {"name": secrets.new("tool")}}
    plain = {"model": TINY, "max_tokens": 8}
    embed = {"model": ENCODER, "user": secrets.new("embedding-user")}
    for body in (
        chat(secrets),
        chat(secrets, stream=True),
        chat(secrets, model=f"sk-{secrets.new('model')}"),
        chat(secrets, tools=[tool]),
        chat(secrets, unknown=secrets.new("unknown")),
        chat(secrets, temperature=secrets.new("temperature")),
        chat(secrets, messages=secrets.new("messages")),
        chat(secrets, chat_template_kwargs={"messages": secrets.new("template")}),
        chat(secrets, filler="x" * MAX_BODY_BYTES),
        message(secrets),
        message(secrets, stream=True),
        message(secrets, tool_choice={"type": "tool", "name": secrets.new("chosen")}),
        message(secrets, messages=[{"role": "user", "content": [{"type": secrets.new("kind")}]}]),
        response(secrets),
        response(secrets, stream=True),
        response(secrets, text={"verbosity": secrets.new("verbosity")}),
        response(secrets, input=[{"type": secrets.new("item")}]),
        response(secrets, previous_response_id=secrets.new("previous")),
        # Stored, were it not for a model that isn't there.
        response(secrets, store=True, model=f"sk-{secrets.new('model-of-a-response')}"),
        plain | {"prompt": secrets.new("prompt")},
        plain | {"prompt": secrets.new("prompt") * 200},
        embed | {"input": [secrets.new("input")]},
        embed | {"input": secrets.new("input") * 20},
        embed | {"input": "a", "prompt_name": secrets.new("prompt-name")},
        embed | {"input": {"a": secrets.new("input")}},
    ):
        yield json.dumps(body).encode()
    yield f'{{"model": "{secrets.new("cut-off")}'.encode()
    yield f"key={secrets.new('form')}".encode()


def sent(method: str, secrets: Secrets) -> Iterator[bytes]:
    """The bodies that are tried with a method."""
    if method == "POST":
        yield from bodies(secrets)
    elif method == "PUT":
        for name in ("chat_s", secrets.new("field")):
            yield json.dumps({name: secrets.new("setting")}).encode()
        yield f'{{"chat_s": "{secrets.new("cut-off-setting")}'.encode()
    else:
        yield b""


def send_everything(
    application: Application, main: str, secrets: Secrets, folder: Path
) -> set[int]:
    statuses = set[int]()
    paths = [*routes(main, folder), ("POST", "/broken"), ("POST", "/nothing/{model_id:path}")]
    with httpx.Client(base_url=application.url, timeout=60) as http:
        for method, template in paths:
            path = re.sub(
                r"{[a-z_]+(:path)?}", lambda _: secrets.new("path-of-some-length"), template
            )
            assert "{" not in path, "a new parameter needs a secret"
            for body in sent(method, secrets):
                with http.stream(
                    method,
                    path,
                    params=query(secrets),
                    headers=headers(secrets) | {"Content-Type": "application/json"},
                    content=body,
                ) as answer:
                    statuses.add(answer.status_code)
                    if (method, path) == ("GET", ENDLESS_PATH):
                        next(answer.iter_lines())
                    else:
                        answer.read()
        with contextlib.suppress(httpx.RemoteProtocolError):
            http.post("/broken-later", json={"secret": secrets.new("broken-later")})
        # Of somebody on this machine it is believed, and the pages are for this machine alone.
        forwarded = {"X-Forwarded-For": secrets.new("forwarded-for")}
        for body in bodies(secrets):
            http.post("/v1/chat/completions", content=body, headers=forwarded)
    return statuses


def kill_the_engine_in_mid_stream(application: Application, secrets: Secrets) -> str:
    """Return what the client got."""
    body = chat(secrets, stream=True, max_tokens=ENDLESS_TOKENS, temperature=0)
    url = f"{application.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers(secrets), timeout=60) as answer:
        lines = answer.iter_lines()
        first = [next(lines) for _ in range(10)]
        for engine in psutil.Process(application.process.pid).children():
            engine.kill()
        return "\n".join([*first, *lines])


def answered(application: Application, secrets: Secrets) -> str:
    answer = httpx.post(
        f"{application.url}/v1/chat/completions", json=chat(secrets, seed=1), timeout=60
    )
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_no_secret_no_prompt_and_no_answer_reaches_any_sink(
    application: Application, main: str, tmp_path: Path
) -> None:
    secrets = Secrets()
    statuses = send_everything(application, main, secrets, tmp_path)
    text = answered(application, secrets)
    cut = kill_the_engine_in_mid_stream(application, secrets)
    application.process.send_signal(signal.SIGTERM)
    application.process.wait(60)

    assert statuses >= {200, 400, 404, 405, 413, 422, 500}
    assert "engine_failed" in cut
    assert len(text) > 10
    sinks = application.sinks()
    assert {name: secrets.found_in(found) for name, found in sinks.items()} == {
        name: [] for name in sinks
    }
    assert not any(text.encode() in found for found in sinks.values())
    # And the sinks are no empty ones.
    assert b"request failed" in sinks["log and console"]
    assert b"break_at_once" in sinks["log and console"]
    assert "POST /v1/chat/completions" in application.collector.span_names
    assert "POST /v1/messages" in application.collector.span_names
    assert {f"embeddings {ENCODER}", "compute"} <= {*application.collector.span_names}
    assert b"mlx.time_to_first_token_s" in sinks["OTLP and Logfire"]
    with contextlib.closing(sqlite3.connect(application.database)) as database:
        (rows,) = database.execute("SELECT count(*) FROM audit_log").fetchone()
    assert rows > 5


def tables_with(secrets: Secrets, database: Path) -> set[str]:
    """The tables that hold any of the secrets."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = [name for (name,) in names]
        rows = {
            name: repr(connection.execute(f"SELECT * FROM {name}").fetchall()) for name in tables
        }
    return {name for name, found in rows.items() if secrets.found_in(found.encode())}


def test_a_stored_response_is_in_its_own_table_and_in_no_other_sink(
    application: Application,
) -> None:
    secrets = Secrets()
    # By chance a random model ends an answer by itself: 1 of 150.
    body = response(secrets, store=True, ignore_eos=True)
    url = f"{application.url}/v1/responses"
    answer = httpx.post(url, json=body, timeout=60).json()
    background = httpx.post(url, json=body | {"background": True}, timeout=60).json()
    place = f"{url}/{background['id']}"
    wait_until(lambda: httpx.get(place).json()["status"] == "incomplete")
    assert httpx.get(f"{url}/{answer['id']}/input_items").status_code == 200
    application.process.send_signal(signal.SIGTERM)
    application.process.wait(60)

    sinks = application.sinks()
    assert tables_with(secrets, application.database) == {"responses"}
    assert set(secrets.found_in(sinks.pop("database"))) == set(secrets.made)
    assert {name: secrets.found_in(found) for name, found in sinks.items()} == {
        name: [] for name in sinks
    }
    [message] = answer["output"]
    text = message["content"][0]["text"]
    assert len(text) > 10
    assert not any(text.encode() in found for found in sinks.values())


def test_the_search_would_find_a_secret() -> None:
    secrets = Secrets()
    secret = secrets.new("place")

    assert secrets.found_in(f"…{secret}…".encode()) == [secret]
    assert gzip.decompress(gzip.compress(secret.encode())) == secret.encode()
