"""One inference server for all tests of this folder, and clients for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from mlx_manager.mlx_server.app import create_app
from tests.support.running import RunningServer, running, settings_for
from tests.support.spans import spans

__all__ = ["spans"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A running inference server."""
    app = create_app(settings_for(tmp_path_factory.mktemp("server"), model_dir))
    with running(app) as server:
        yield server


@pytest.fixture
async def openai(server: RunningServer) -> AsyncIterator[AsyncOpenAI]:
    """The real OpenAI client, without retries: a failure is to be seen."""
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.fixture
async def anthropic(server: RunningServer) -> AsyncIterator[AsyncAnthropic]:
    """The real Anthropic client, without retries too."""
    async with AsyncAnthropic(
        base_url=server.url, api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.fixture
async def http(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """A plain HTTP client, for what the SDK would hide."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        yield client
