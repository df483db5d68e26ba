"""Processes of their own for what belongs to a process, and clients that leave no spans."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.spans import UntracedTransport, spans

__all__ = ["spans"]

ROOT = Path(__file__).parents[2]
# Of the form that Logfire's library takes for one.
TOKEN = "pylf_v1_us_" + "x" * 43


@pytest.fixture
async def untraced() -> AsyncIterator[httpx.AsyncClient]:
    """A client that leaves no spans, so that the server's are the only ones."""
    async with httpx.AsyncClient(transport=UntracedTransport()) as client:
        yield client


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def refused_port() -> Iterator[int]:
    """A port that nobody listens on, and nobody else can have meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """Run code in a fresh interpreter in which every warning is an error."""
    return interpreter(tmp_path)


@pytest.fixture(scope="module")
def module_python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """The same, for what all tests of a module look at."""
    return interpreter(tmp_path_factory.mktemp("python"))


def interpreter(tmp_path: Path) -> Python:
    def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env=clean_environment(tmp_path) | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def clean_environment(home: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LOGFIRE_", "OTEL_", "MLX_"))
    }
    return kept | {
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "MLX_SERVER_DATABASE_URL": f"sqlite+aiosqlite:///{home / 'test.db'}",
        "MLX_SERVER_TRACES_PATH": str(home / "traces.db"),
    }
