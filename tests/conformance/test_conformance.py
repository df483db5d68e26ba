"""The conformance checks pass where the protocol is kept, fail where it isn't, and tell models from servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from mlx_manager import __version__
from mlx_manager.app import create_app
from mlx_manager.capability_card import keep_card, path_beside, read_cards
from mlx_manager.cli import app as cli
from mlx_manager.conformance.anthropic_sdk_checks import ANTHROPIC_SDK_CHECKS
from mlx_manager.conformance.card import card_of
from mlx_manager.conformance.check import Capability, Check, Finding, run
from mlx_manager.conformance.clients import CLIENT_CHECKS
from mlx_manager.conformance.openai_checks import TEXT_CHECKS
from mlx_manager.conformance.openai_sdk_checks import OPENAI_SDK_CHECKS
from mlx_manager.conformance.subject import Subject
from mlx_manager.conformance.suite import OF_ALL, OF_TEXT, findings
from mlx_manager.mlx_server.state import STARTER_ID
from tests.support.encoders import make_encoder
from tests.support.process import run as run_command
from tests.support.provider import app as provider
from tests.support.running import RunningServer, running, settings_for
from tools.random_model import Shape, make_random_model

ENCODER = "test/vectors"
RANDOM = "test/random"
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("conformance")
    models = folder / "models"
    make_encoder(models / ENCODER)
    # It ends no answer by itself, and clients that set no limit have it go on to the end of its context.
    make_random_model(models / RANDOM, Shape(context=3072))
    settings = settings_for(folder, models, lookup_tokens=8)
    with running(create_app(settings)) as server:
        yield server


async def found_of(server: RunningServer, model: str) -> list[Finding]:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        return [finding async for finding in findings(Subject(client, model))]


@pytest.fixture(scope="module")
def starter(server: RunningServer) -> list[Finding]:
    """What all checks find of the starter model."""
    return asyncio.run(found_of(server, STARTER_ID))


def test_the_starter_passes_every_check_and_can_call_and_think(starter: list[Finding]) -> None:
    found = starter
    assert [one for one in found if one.result == "fail"] == []
    assert len(found) == len(OF_TEXT) + len(OF_ALL)
    # Its context is too small for the tools of Claude Code; nothing else is passed over.
    passed_over = ["claude-code: print", "claude-code: print, turn 2"]
    assert [one.name for one in found if one.result == "n/a"] == passed_over
    assert {one.name: one.result for one in found if one.is_capability} == {
        "calls tools": "yes",
        "parallel calls": "no",
        "forced calls": "yes",
        "thinks": "yes",
        "thinking can be off": "yes",
        "ends its answers": "yes",
        "embeddings": "no",
    }


def test_both_sdks_ask_for_all_that_their_apis_have(starter: list[Finding]) -> None:
    groups = {
        way: {one.group for one in starter if one.way == way} for way in ("openai", "anthropic")
    }
    chats = {"chat", "tools", "text", "responses", "embeddings"}
    assert groups == {
        "openai": chats | {"errors", "models"},
        "anthropic": {"messages", "errors", "models"},
    }
    told = {one.way: one.note for one in starter if one.name == "listed, retrieved"}
    assert told == {
        "openai": f"openai {version('openai')}",
        "anthropic": f"anthropic {version('anthropic')}",
    }


async def test_what_a_random_model_cannot_do_is_no_failure(server: RunningServer) -> None:
    found = await found_of(server, RANDOM)
    assert [one for one in found if one.result == "fail"] == []
    assert {one.name for one in found if one.result == "no"} >= {"calls tools", "thinks"}


async def test_a_model_of_embeddings_is_asked_for_vectors_only(server: RunningServer) -> None:
    found = await found_of(server, ENCODER)
    assert [one for one in found if one.result == "fail"] == []
    assert {one.group for one in found} == {"errors", "embeddings", "models", "model"}
    assert [one.result for one in found if one.is_capability] == ["yes"]
    assert [one.result for one in found if one.way == "openai"] == ["pass", "pass"]


class Altered(httpx.AsyncHTTPTransport):
    """Brings the real server's whole answers with one thing changed: a server that breaks one rule."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        await response.aread()
        if "json" not in response.headers["content-type"]:
            return response
        body = response.json()
        self.change(body)
        return httpx.Response(response.status_code, json=body)


def more_tokens(body: dict[str, Any]) -> None:
    body["usage"]["total_tokens"] += 1


def other_words(body: dict[str, Any]) -> None:
    body["choices"][0]["message"]["content"] += "!"


def no_choices(body: dict[str, Any]) -> None:
    del body["choices"]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("usage", more_tokens, "don't add up"),
        ("streamed", other_words, "something else"),
        ("whole", no_choices, "choices are None"),
        ("json_schema", other_words, "another shape"),
    ],
)
async def test_a_server_that_breaks_a_rule_fails_its_check(
    server: RunningServer, name: str, change: Change, says: str
) -> None:
    check = next(one for one in TEXT_CHECKS if one.name == name)
    async with httpx.AsyncClient(base_url=server.url, transport=Altered(change)) as client:
        (finding,) = [one async for one in run(Subject(client, STARTER_ID), [check])]
    assert finding.result == "fail"
    assert says in finding.note


async def test_a_clients_body_that_is_refused_is_a_failure(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        nobody = Subject(client, "nobody/nothing")
        found = [one async for one in run(nobody, CLIENT_CHECKS)]
    answered = [one for one in found if one.result != "fail"]
    assert [one.name for one in answered if one.name != "Codex CLI: responses"] == []
    assert all("nobody/nothing" in one.note for one in found if one.result == "fail")


async def test_without_an_answer_a_check_fails_and_a_capability_is_not_denied() -> None:
    async with httpx.AsyncClient(base_url="http://127.0.0.1:1") as client:
        checks: list[Check | Capability] = [*OF_TEXT[:1], *OF_TEXT[-1:]]
        found = [one async for one in run(Subject(client, "x"), checks)]
    assert [one.result for one in found] == ["fail", "fail"]


def findings_made() -> list[Finding]:
    return [
        Finding("chat", "whole", "pass", 0.1),
        Finding("chat", "stop", "fail", 0.1, "why"),
        Finding("model", "thinks", "yes", 0.1),
        Finding("model", "calls tools", "no", 0.1),
    ]


def test_a_card_replaces_the_one_of_the_same_model_only(tmp_path: Path) -> None:
    path = path_beside(tmp_path / "new" / "traces.db")
    for model, revision in [("a", "1"), ("b", "1"), ("a", "2")]:
        keep_card(path, card_of(model, revision, "9", datetime.now(UTC), findings_made()))
    cards = read_cards(path)
    assert set(cards) == {("b", "1"), ("a", "2")}
    assert (cards["a", "2"].can, cards["a", "2"].passed, cards["a", "2"].failed) == (
        ("thinks",),
        1,
        1,
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"model": 1}]'])
def test_a_damaged_file_of_cards_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "capabilities.json").write_text(text)
    assert read_cards(path_beside(tmp_path / "traces.db")) == {}


async def test_the_doctor_prints_keeps_the_card_and_the_first_page_shows_it(
    server: RunningServer,
) -> None:
    traces = server.state.settings.traces_path
    done = run_command(
        traces.parent,
        *("doctor", "conformance", "--url", f"{server.url}/v1", "--model", ENCODER, "--json"),
        MLX_SERVER_TRACES_PATH=str(traces),
        MLX_SERVER_MODEL_DIRS=str(traces.parent / "models"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["model"] == ENCODER
    assert {one["result"] for one in told["findings"]} <= {"pass", "yes", "no", "n/a"}
    (card,) = read_cards(path_beside(traces)).values()
    assert (card.model, card.version, card.failed) == (ENCODER, __version__, 0)
    async with httpx.AsyncClient(base_url=server.url) as client:
        page = (await client.get("/")).text
    assert "embeddings" in page
    assert f"checked {card.checked_on}" in page


def test_make_conformance_prints_a_line_for_each_check_of_a_server_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.conformance", "--group", "models"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *rows, summary = done.stdout.splitlines()
    line = re.compile(r"(.+?) {2,}(HTTP|openai|anthropic) +pass +\d+\.\d\d s  .*")
    assert [match.groups() for match in map(line.fullmatch, rows) if match] == [
        ("models: OpenAI's shape", "HTTP"),
        ("models: Anthropic's shape", "HTTP"),
        ("models: listed, retrieved", "openai"),
        ("models: listed, retrieved", "anthropic"),
    ]
    assert summary.startswith("4 passed, 0 failed, 0 don't apply.")
    assert done.stderr == "", "some of the groups make no card"


def test_without_the_sdks_their_checks_say_so_and_the_others_are_made(
    server: RunningServer, tmp_path: Path
) -> None:
    for package in ("openai", "anthropic"):
        (tmp_path / f"{package}.py").write_text("raise ImportError\n")
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = run_command(
        tmp_path,
        *("doctor", "conformance", "--url", server.url, "--model", STARTER_ID),
        *("--group", "models", "--json"),
        PYTHONPATH=paths,
    )
    assert done.returncode == 0, done.stderr
    found = [Finding(**one) for one in json.loads(done.stdout)["findings"]]
    assert [(one.way, one.result) for one in found] == [
        ("HTTP", "pass"),
        ("HTTP", "pass"),
        ("openai", "n/a"),
        ("anthropic", "n/a"),
    ]
    hint = "pip install 'mlx-manager[cloud]'"
    assert [one.note for one in found[2:]] == [
        f"openai is not installed: {hint}",
        f"anthropic is not installed: {hint}",
    ]


async def test_an_answer_that_an_sdk_cannot_read_fails_its_check() -> None:
    counted = next(one for one in ANTHROPIC_SDK_CHECKS if one.name == "count_tokens")
    with running(provider) as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            wanted = [OPENAI_SDK_CHECKS[0], counted]
            found = [one async for one in run(Subject(client, "gpt-real"), wanted)]
    assert [(one.way, one.result) for one in found] == [("openai", "fail"), ("anthropic", "fail")]


def test_a_group_that_is_not_there_is_said_with_those_that_are() -> None:
    done = CliRunner().invoke(cli, ["doctor", "conformance", "--group", "nonsense"])
    assert done.exit_code == 2
    assert "chat, tools, formats" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--url", "http://127.0.0.1:1"], "No server answers"),
        (["--url", "nonsense"], "No server answers"),
    ],
)
def test_a_server_that_is_not_there_is_said_in_a_line(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    done = run_command(tmp_path, "doctor", "conformance", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_there_is_said_with_those_that_are(
    server: RunningServer, tmp_path: Path
) -> None:
    done = run_command(tmp_path, "doctor", "conformance", "--url", server.url, "--model", "no/such")
    assert done.returncode == 2
    assert STARTER_ID in done.stderr
