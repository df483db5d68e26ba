"""A manager whose store gets the spans of its requests, and a store by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from mlx_manager.app import create_app
from mlx_manager.observability.setup import TelemetryOptions, configure
from mlx_manager.traces.store import TraceStore
from tests.support.running import RunningServer, running, settings_for

TINY = "test/tiny"


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A running manager that keeps its traces."""
    configure(TelemetryOptions("mlx-test"))
    with running(create_app(settings_for(tmp_path_factory.mktemp("traces"), model_dir))) as server:
        yield server


@pytest.fixture
def http(manager: RunningServer) -> Iterator[httpx.Client]:
    """A client that leaves no spans of its own: its transport isn't instrumented."""
    with httpx.Client(base_url=manager.url, transport=PlainTransport(), timeout=60) as client:
        yield client


class PlainTransport(httpx.HTTPTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        import logfire

        with logfire.suppress_instrumentation():
            return super().handle_request(request)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    """An empty store."""
    with TraceStore(tmp_path / "traces.db") as store:
        yield store


@pytest.fixture
def ask(http: httpx.Client, manager: RunningServer) -> Callable[..., str]:
    """Ask the model something and return the id of the trace, once the store has it."""

    def ask(**changes: object) -> str:
        body = {"model": TINY, "prompt": "x", "max_tokens": 3, "temperature": 0} | changes
        response = http.post("/v1/completions", json=body)
        trace_id = response.headers["X-Trace-ID"]
        store = manager.state.traces
        assert store is not None
        from tests.support.running import wait_until

        wait_until(
            lambda: (
                (found := store.get_trace(trace_id)) is not None
                and any(s.kind == "server" for s in found.spans)
            )
        )
        return str(trace_id)

    return ask
