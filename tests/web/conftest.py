"""A manager with real traces in it, and a browser to look at them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import logfire
import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from mlx_manager.app import create_app
from mlx_manager.observability.setup import TelemetryOptions, configure
from mlx_manager.traces.store import TraceStore
from tests.support.browser import open_browser
from tests.support.recorded import span
from tests.support.running import RunningServer, running, settings_for, wait_until

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
HOSTILE_TRACE = "e" * 32
MANY = 55


@dataclass(frozen=True)
class Site:
    """The manager's pages; `chat_id` is the trace of an answered chat, `missing_id` of one for a model there isn't."""

    server: RunningServer
    chat_id: str
    missing_id: str

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def store(self) -> TraceStore:
        store = self.server.state.traces
        assert store is not None
        return store

    def ask(
        self, model: str = "test/tiny", tokens: int = 6, headers: Mapping[str, str] | None = None
    ) -> str:
        """Send a chat and return its trace's id, once it can be looked at."""
        # Without a span of its own: earlier tests may have instrumented httpx.
        with logfire.suppress_instrumentation():
            answer = httpx.post(
                f"{self.url}/v1/chat/completions",
                json={
                    "model": model,
                    "messages": [{"role": "user", "content": "Hi"}],
                    "max_tokens": tokens,
                    "temperature": 0,
                },
                headers=headers,
                timeout=60,
            )
        trace_id = answer.headers["X-Trace-ID"]
        wait_until(lambda: _is_whole(self.store, trace_id))
        return str(trace_id)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[Site]:
    configure(TelemetryOptions("mlx-test"))
    with running(create_app(settings_for(tmp_path_factory.mktemp("site"), model_dir))) as server:
        draft = Site(server, "", "")
        site = Site(server, chat_id=draft.ask(), missing_id=draft.ask("nobody/none"))
        _fill(site.store)
        yield site


@pytest.fixture(scope="module")
def empty_site(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[str]:
    """The address of a manager that nobody has used yet."""
    app = create_app(settings_for(tmp_path_factory.mktemp("empty"), model_dir))
    with running(app) as server:
        yield server.url


# Chromium, a server and an engine share the machine with other tests.
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser without memory: no storage, no history."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


def _is_whole(store: TraceStore, trace_id: str) -> bool:
    found = store.get_trace(trace_id)
    return found is not None and any(span.kind == "server" for span in found.spans)


def _fill(store: TraceStore) -> None:
    """Add a trace that tries to break out of the page, and more than a page of others, an hour old."""
    now_ms = (time.time_ns() - 1_800_000_000_000_000_000) / 1e6
    hour_ago_ms = now_ms - 3_600_000
    hostile = span(
        HOSTILE,
        hour_ago_ms,
        hour_ago_ms + 20,
        None,
        trace_id=HOSTILE_TRACE,
        note__text=HOSTILE,
        also={HOSTILE: HOSTILE},
    )
    others = [
        span(
            f"job-{number}",
            hour_ago_ms - number * 1000,
            hour_ago_ms - number * 1000 + number + 1,
            None,
            trace_id=f"{number + 1:032x}",
        )
        for number in range(MANY)
    ]
    for one in (hostile, *others):
        store.put(lambda one=one: one)  # type: ignore[misc]
    assert store.flush(10)
