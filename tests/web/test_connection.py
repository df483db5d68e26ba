"""What a page says of its connection: that it is live, lost, ended by the server, or that an engine is down."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from mlx_manager.app import create_app
from tests.support.process import Started, started
from tests.support.running import RunningServer, running, settings_for, wait_until
from tools.random_model import make_random_model

MODEL = "test/frail"
# Every word is noted, however short it stands there.
LISTEN = """() => {
    const live = document.querySelector(".live");
    window.heard = [];
    const note = () => heard.at(-1) === live.innerText.trim() || heard.push(live.innerText.trim());
    new MutationObserver(note).observe(live, { subtree: true, childList: true, attributes: true });
}"""


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def followed(page: Page, url: str) -> Locator:
    """Open a page; return what it says of its connection: it is live."""
    page.goto(url)
    live = page.locator(".live")
    says(live, "live", "Live")
    page.evaluate(LISTEN)
    return live


def says(live: Locator, state: str, word: str) -> None:
    expect(live).to_have_text(word)
    expect(live).to_have_attribute("data-state", state)


def tries_in_vain(page: Page) -> None:
    """Wait until the page has asked for updates once more, and nobody was there."""
    with page.expect_event("requestfailed", lambda asked: asked.url.endswith("/api/events")):
        pass


def port_of(server: Started) -> str:
    return str(urlsplit(server.url).port)


def test_a_lost_connection_is_said_and_taken_up_again(tmp_path: Path, page: Page) -> None:
    with started(tmp_path, "serve") as server:
        port, live = port_of(server), followed(page, f"{server.url}/settings")
        server.process.kill()
        server.wait()
    says(live, "down", "Reconnecting")
    tries_in_vain(page)

    with started(tmp_path, "serve", "--port", port):
        says(live, "live", "Live")
        assert page.evaluate("heard") == ["Reconnecting", "Live"]


def test_a_server_that_stops_is_said_to_have_stopped_until_there_is_one_again(
    tmp_path: Path, page: Page
) -> None:
    with started(tmp_path, "serve") as server:
        port, live = port_of(server), followed(page, f"{server.url}/settings")
        server.process.send_signal(signal.SIGTERM)
        server.wait()
    says(live, "down", "Server stopped")
    tries_in_vain(page)

    with started(tmp_path, "serve", "--port", port) as next_one:
        says(live, "live", "Live")
        assert page.evaluate("heard") == ["Server stopped", "Live"]
        next_one.process.kill()
        next_one.wait()
    says(live, "down", "Reconnecting")


def end_engine(server: RunningServer) -> None:
    engine = server.resident(MODEL).engine
    assert engine is not None
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)


def load(server: RunningServer) -> None:
    asked = {"model": MODEL, "prompt": "Hi", "max_tokens": 1}
    httpx.post(f"{server.url}/v1/completions", json=asked, timeout=120).raise_for_status()


def test_an_engine_that_is_down_is_said_until_another_is_up(tmp_path: Path, page: Page) -> None:
    """It can't be replaced while the model's folder is away."""
    models, away = tmp_path / "models", tmp_path / "away"
    make_random_model(models / MODEL)
    with running(create_app(settings_for(tmp_path, models))) as server:
        load(server)
        live = followed(page, server.url)
        resident = page.locator(".residents p", has_text=MODEL).locator(".state")
        expect(resident).to_have_text("idle")
        expect(page.locator(".lead .status")).to_have_text("Running")

        (models / MODEL).rename(away)
        end_engine(server)

        says(live, "ill", "Engine down")
        expect(resident).to_have_text("dead")
        page.reload()
        says(live, "ill", "Engine down")
        expect(page.locator(".lead .status")).to_have_text("An engine is down")

        away.rename(models / MODEL)
        wait_until(lambda: server.resident(MODEL).is_healthy, 120)
        says(live, "live", "Live")
        expect(resident).to_have_text("idle")
        # A server that can't be told by a signal would wait for the end of what the page follows.
        page.close()
