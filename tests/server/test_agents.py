"""What Claude Code really sent is answered: the tools that it brings are more than the starter model has room for.

All other recorded agents are asked by the conformance checks, of the starter model, in `tests/conformance`.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from mlx_manager.conformance.agents import AGENTS
from mlx_manager.conformance.clients import LIMITS, is_answered
from mlx_manager.conformance.recorded import Recorded
from mlx_manager.conformance.subject import Subject
from mlx_manager.mlx_server.app import create_app
from tests.support.running import RunningServer, running, settings_for
from tools.random_model import Shape, make_random_model

ROOMY = "test/roomy"
LARGE = [one for one in AGENTS if one.client == "claude-code"]


def test_every_client_and_every_surface_is_there() -> None:
    assert len({one.client for one in AGENTS}) == 6
    assert {one.surface for one in AGENTS} == set(LIMITS)
    assert len(AGENTS) > 50


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose model has room for the tools of Claude Code."""
    folder = tmp_path_factory.mktemp("roomy")
    make_random_model(folder / ROOMY, Shape(context=65_536))
    with running(create_app(settings_for(tmp_path_factory.mktemp("agents"), folder))) as server:
        yield server


@pytest.mark.parametrize("one", LARGE, ids=lambda one: one.what)
async def test_what_a_large_agent_sends_is_answered(roomy: RunningServer, one: Recorded) -> None:
    async with httpx.AsyncClient(base_url=roomy.url, timeout=120) as http:
        await is_answered(one, Subject(http, ROOMY))
