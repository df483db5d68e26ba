"""Bodies that agents and their libraries really sent, to a server that recorded them: each is answered.

`tests/wire/agents` has what each of these versions sent in one or two turns, the second with a tool's result. Texts of
more than 72 characters are left out of them, and identifiers are zeroed; fields and schemas are as they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_manager.conformance.anthropic_checks import check_order
from mlx_manager.conformance.clients import check_response
from mlx_manager.conformance.subject import Event, chunks_of, events_of
from mlx_manager.mlx_server.app import create_app
from tests.support.running import RunningServer, running, settings_for
from tools.random_model import Shape, make_random_model

RECORDED = Path(__file__).parents[1] / "wire" / "agents"
MODEL, ROOMY = "mlx-manager/starter", "test/roomy"
# Enough to see how an answer begins and ends.
LIMITS = {
    "/v1/chat/completions": "max_completion_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}


@dataclass(frozen=True)
class Recorded:
    name: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def surface(self) -> str:
        return self.path.split("?")[0]

    def sent(self, model: str) -> dict[str, Any]:
        """The body for a small model: greedy and short, and otherwise as it was."""
        return {**self.body, "model": model, "temperature": 0, LIMITS[self.surface]: 48}


def recorded() -> Iterator[Recorded]:
    for file in sorted(RECORDED.glob("*.json")):
        client = json.loads(file.read_text())
        for one in client["requests"]:
            name = f"{client['client']}: {one['what']}"
            yield Recorded(name, one["path"], one["headers"], one["body"])


ALL = list(recorded())
LARGE = [one for one in ALL if one.name.startswith("claude-code")]
SMALL = [one for one in ALL if one not in LARGE]


def test_every_client_and_every_surface_is_there() -> None:
    assert len({one.name.split(":")[0] for one in ALL}) == 6
    assert {one.surface for one in ALL} == set(LIMITS)
    assert len(ALL) > 50


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose model has room for the tools of Claude Code, which the starter model has not."""
    folder = tmp_path_factory.mktemp("roomy")
    make_random_model(folder / ROOMY, Shape(context=65_536))
    with running(create_app(settings_for(tmp_path_factory.mktemp("agents"), folder))) as server:
        yield server


@pytest.mark.parametrize("one", SMALL, ids=lambda one: one.name)
async def test_what_an_agent_sends_is_answered(http: httpx.AsyncClient, one: Recorded) -> None:
    await check_answer(http, one, MODEL)


@pytest.mark.parametrize("one", LARGE, ids=lambda one: one.name)
async def test_what_a_large_agent_sends_is_answered(roomy: RunningServer, one: Recorded) -> None:
    async with httpx.AsyncClient(base_url=roomy.url, timeout=120) as http:
        await check_answer(http, one, ROOMY)


async def check_answer(http: httpx.AsyncClient, one: Recorded, model: str) -> None:
    body = one.sent(model)
    if not body.get("stream"):
        response = await http.post(one.path, json=body, headers=one.headers)
        assert response.status_code == 200, response.text
        return
    async with http.stream("POST", one.path, json=body, headers=one.headers) as response:
        if response.status_code != 200:
            await response.aread()
        assert response.status_code == 200, response.text
        check_stream(one, [event async for event in events_of(response)])


def check_stream(one: Recorded, events: list[Event]) -> None:
    if one.surface == "/v1/chat/completions":
        chunks_of(events)
    elif one.surface == "/v1/messages":
        check_order(events)
    else:
        check_response(events)
