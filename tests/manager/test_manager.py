"""The manager: the server's routes and its own, in one application on one port."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from playwright.sync_api import Page

from mlx_manager import __version__
from mlx_manager.app import create_app
from tests.support.browser import Complaints, open_browser
from tests.support.running import RunningServer, running, settings_for

NARROW = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    app = create_app(settings_for(tmp_path_factory.mktemp("manager"), model_dir))
    with running(app) as server:
        yield server


@pytest.fixture(scope="module")
def page(manager: RunningServer) -> Iterator[Page]:
    """The first page in a real browser, at the width of a phone."""
    with open_browser() as browser:
        page = browser.new_page(viewport=NARROW)  # type: ignore[arg-type]
        complaints = Complaints().of(page)
        page.goto(manager.url)
        assert complaints.lines == []
        yield page


def test_the_servers_api_answers_on_the_managers_port(manager: RunningServer) -> None:
    with OpenAI(base_url=f"{manager.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="test/tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=3
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("path", ["/health", "/api/health"])
def test_health_says_what_is_in_memory(manager: RunningServer, path: str) -> None:
    report = httpx.get(manager.url + path).json()
    assert (report["status"], report["version"]) == ("ok", __version__)


def test_the_version_is_told(manager: RunningServer) -> None:
    answer = httpx.get(f"{manager.url}/api/version").json()
    assert answer == {"name": "mlx-manager", "version": __version__}


def test_an_unknown_path_is_a_problem_document(manager: RunningServer) -> None:
    answer = httpx.get(f"{manager.url}/api/nothing")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


def test_the_page_allows_no_inline_script_and_nothing_from_elsewhere(
    manager: RunningServer,
) -> None:
    policy = httpx.get(manager.url).headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "://" not in policy


def test_the_page_says_what_is_running_and_how_to_call_it(
    manager: RunningServer, page: Page
) -> None:
    text = page.inner_text("body")
    assert __version__ in text
    assert f'base_url="{manager.url}/v1"' in text
    assert "mlx-manager/starter" in text
    assert "test/tiny" in text
    starter = page.locator("li", has_text="mlx-manager/starter")
    assert starter.locator(".tag").all_inner_texts() == ["demonstration"]
    assert page.title() == "MLX Manager"


def test_the_examples_on_the_page_work(manager: RunningServer, page: Page) -> None:
    """What a newcomer copies must run as it stands."""
    code = page.inner_text("pre >> nth=0")
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout) > 10


def test_the_page_fits_a_phone_and_has_its_style(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    assert page.evaluate("document.styleSheets[0].cssRules.length") > 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable_in_both_themes(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    style = "getComputedStyle(document.body)"
    colours = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
    text, ground = (luminance(colour) for colour in colours)
    brighter, darker = max(text, ground), min(text, ground)
    assert (brighter + 0.05) / (darker + 0.05) > 7
    assert (ground < 0.5) == (scheme == "dark")


def luminance(colour: str) -> float:
    """Relative luminance of an `rgb(...)` colour, as WCAG defines it."""
    channels = [int(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
