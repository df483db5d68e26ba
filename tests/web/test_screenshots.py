"""The tool that takes pictures of every page."""

from __future__ import annotations

import struct
from itertools import islice
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from mlx_manager.web.shell import PLACES
from tests.web.conftest import Site
from tools.screenshots import main, pages_of, shoot


def size(file: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    head = file.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_every_page_is_shot_as_tall_as_it_is(site: Site, browser: Browser, tmp_path: Path) -> None:
    names = [name for name, _ in pages_of(site.url)]
    assert {place.name.lower() for place in PLACES} < set(names)
    assert {"usage", "not-found", "trace-ok", "trace-error"} < set(names)

    files = list(islice(shoot(browser, site.url, tmp_path), len(names) + 1))

    assert [file.name for file in files] == [
        *(f"{name}-phone-dark.png" for name in names),
        f"{names[0]}-desk-dark.png",
    ]
    *phone, desk = map(size, files)
    assert {width for width, _ in phone} == {390}
    assert min(height for _, height in phone) >= 844
    assert max(height for _, height in phone) > 2000
    assert desk[0] == 1440


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://[::1"])
def test_without_a_server_one_line_says_what_to_do(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pictures"

    status = main(["--out", str(out), "--url", url])

    (line,) = capsys.readouterr().err.splitlines()
    assert status == 1
    assert line.startswith(f"No server answers at {url}: ")
    assert line.endswith("Start one with `mlx-manager serve`, or give its --url.")
    assert not out.exists()
