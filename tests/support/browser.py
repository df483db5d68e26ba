"""Find the browser that the tests of the pages drive."""

from __future__ import annotations

import shutil

# What `tools/setup/system-packages.sh` takes for one, too: it installs Chromium where none of these is there.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """Return the path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)
