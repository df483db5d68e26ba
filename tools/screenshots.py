"""Take a picture of every page of a running server, on a phone and a desk, dark and light.

`python -m tools.screenshots --out DIR` writes DIR/PAGE-SCREEN-SCHEME.png; it needs Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import httpx
from playwright.sync_api import Browser, Page, ViewportSize, expect

from mlx_manager.web.shell import PLACES
from tests.support.browser import MISSING, find_browser, launched

SCREENS: Final[dict[str, ViewportSize]] = {
    "phone": {"width": 390, "height": 844},
    "desk": {"width": 1440, "height": 900},
}
SCHEMES: Final[tuple[Literal["dark", "light"], ...]] = ("dark", "light")
UNKNOWN = f"/traces/{'0' * 32}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Take them all and say where they are; `arguments` are those of the command line if not given."""
    asked = _parser().parse_args(arguments)
    url = asked.url.rstrip("/")
    if (reason := _why_no_server(url)) is not None:
        return _refused(reason)
    found = find_browser()
    if found is None:
        return _refused(MISSING)
    asked.out.mkdir(parents=True, exist_ok=True)
    with launched(found) as browser:
        for file in shoot(browser, url, asked.out):
            sys.stdout.write(f"{file}\n")
    return 0


def shoot(browser: Browser, url: str, folder: Path) -> Iterator[Path]:
    """Yield the file of each picture, once it is taken."""
    pages = dict(pages_of(url))
    for scheme in SCHEMES:
        for screen, viewport in SCREENS.items():
            page = browser.new_page(viewport=viewport, color_scheme=scheme)
            for name, path in pages.items():
                file = folder / f"{name}-{screen}-{scheme}.png"
                page.set_viewport_size(viewport)
                _show(page, url + path)
                # As tall as its content: what is fixed to the screen would stand in the middle of a whole page.
                tall = max(
                    viewport["height"], page.evaluate("document.documentElement.scrollHeight")
                )
                page.set_viewport_size({"width": viewport["width"], "height": tall})
                page.screenshot(path=file)
                yield file
            page.close()


def pages_of(url: str) -> Iterator[tuple[str, str]]:
    """Yield name and path of every page, with a trace that was answered and one that failed if there are such."""
    for place in PLACES:
        yield place.name.lower(), place.path
    yield "usage", "/requests/usage"
    yield "nothing-fits", "/traces?text=no-such-thing-anywhere"
    yield "not-found", UNKNOWN
    for status in ("ok", "error"):
        for trace_id in _longest_trace(url, status):
            yield f"trace-{status}", f"/traces/{trace_id}"


def _refused(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1


def _why_no_server(url: str) -> str | None:
    """Return what to do where nothing answers at `url`."""
    try:
        httpx.get(f"{url}/health")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"No server answers at {url}: {error}. Start one with `mlx-manager serve`, or give its --url."
    return None


def _longest_trace(url: str, status: str) -> list[str]:
    """Return the id of that which has most spans among the latest of that status, if there is any."""
    answer = httpx.get(f"{url}/api/traces", params={"status": status, "limit": 50})
    traces = answer.json()["traces"] if answer.is_success else []
    return [one["trace_id"] for one in sorted(traces, key=lambda one: -one["span_count"])[:1]]


def _show(page: Page, address: str) -> None:
    """Open a page and a span of its waterfall, if it has one, and wait until its charts are drawn."""
    page.goto(address)
    expect(page.locator(".live")).to_have_attribute("data-state", "live")
    for chart in page.locator("time-chart").all():
        expect(chart.locator("canvas")).to_be_visible()
    rows = page.locator("[role=treegrid] tbody tr")
    if rows.count():
        rows.nth(min(1, rows.count() - 1)).click()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--url", default="http://127.0.0.1:10242", help="address of the server")
    return parser


if __name__ == "__main__":
    sys.exit(main())
