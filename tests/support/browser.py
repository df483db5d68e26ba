"""Find the browser that the tests of the pages drive, and drive it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

# What `tools/setup/system-packages.sh` takes for one, too: it installs Chromium where none of these is there.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = (
    f"There is no browser here, none of {', '.join(BROWSERS)}. Install one, on Debian and Ubuntu with "
    "`apt-get install chromium`."
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_browser() -> str | None:
    """Return the path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def launched(path: str) -> Iterator[Browser]:
    """Run the browser at `path` until the block ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Run the browser for tests; where there is none they are skipped, or fail if `BROWSER_TESTS` is `required`."""
    found = find_browser()
    if found is None and os.environ.get("BROWSER_TESTS") == "required":
        pytest.fail(MISSING)
    if found is None:
        pytest.skip(MISSING)
    with launched(found) as browser:
        yield browser


@dataclass(frozen=True)
class Complaints:
    """What the browser's console says of a page: errors, warnings, refusals by the content security policy."""

    lines: list[str] = field(default_factory=list)

    def of(self, page: Page) -> Complaints:
        """Listen to `page` from now on."""
        page.on(
            "console",
            lambda said: self.lines.append(f"{said.type}: {said.text} {said.location['url']}"),
        )
        page.on("pageerror", lambda error: self.lines.append(f"uncaught: {error}"))
        return self
