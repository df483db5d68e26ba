"""A manager whose store gets the spans of its requests, and a store by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import logfire
import pytest

from mlx_manager.app import create_app
from mlx_manager.observability.setup import TelemetryOptions, configure
from mlx_manager.traces.store import TraceStore
from tests.support.running import RunningServer, running, settings_for, wait_until

TINY = "test/tiny"


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A running manager that keeps its traces."""
    configure(TelemetryOptions("mlx-test"))
    with running(create_app(settings_for(tmp_path_factory.mktemp("traces"), model_dir))) as server:
        yield server


@pytest.fixture
def kept(manager: RunningServer) -> TraceStore:
    """The manager's store."""
    store = manager.state.traces
    assert store is not None
    return store


class PlainTransport(httpx.HTTPTransport):
    """Sends requests without a span, also when another test has instrumented httpx."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with logfire.suppress_instrumentation():
            return super().handle_request(request)


@pytest.fixture
def http(manager: RunningServer) -> Iterator[httpx.Client]:
    """A client that leaves no spans of its own."""
    with httpx.Client(base_url=manager.url, transport=PlainTransport(), timeout=60) as client:
        yield client


@pytest.fixture
def ask(http: httpx.Client, kept: TraceStore) -> Callable[..., str]:
    """Ask the model something and return the id of the trace, once the store has all of it."""

    def ask(session: str | None = None, **changes: object) -> str:
        body = {"model": TINY, "prompt": "x", "max_tokens": 3, "temperature": 0} | changes
        headers = {"X-Session-ID": session} if session else {}
        answer = http.post("/v1/completions", json=body, headers=headers)
        trace_id = answer.headers["X-Trace-ID"]

        def is_whole() -> bool:
            found = kept.get_trace(trace_id)
            return found is not None and any(span.kind == "server" for span in found.spans)

        wait_until(is_whole)
        return str(trace_id)

    return ask


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    """An empty store."""
    with TraceStore(tmp_path / "traces.db") as store:
        yield store
