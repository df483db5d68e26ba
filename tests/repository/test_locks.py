"""What the lock files promise: exact versions, hashes, no addresses, no torch, in step with pyproject.toml."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "requirements.lock"
DEVELOPMENT = ROOT / "requirements-dev.lock"
LOCKS = pytest.mark.parametrize("path", [RUNTIME, DEVELOPMENT], ids=["runtime", "development"])

PLATFORMS: list[dict[str, str]] = [
    {"sys_platform": platform, "platform_machine": machine, "python_full_version": f"3.{minor}.1"}
    for platform, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
    for minor in (11, 12, 13)
]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One package of a lock: `name==version ; marker --hash=…`."""

    name: str
    version: str
    marker: Marker | None
    hashes: tuple[str, ...]

    def applies(self, platform: dict[str, str]) -> bool:
        return self.marker is None or self.marker.evaluate(platform)


def read(path: Path) -> list[Entry]:
    logical_lines = path.read_text().replace("\\\n", " ").splitlines()
    return [parse(line) for line in logical_lines if line and not line.startswith("#")]


def parse(line: str) -> Entry:
    requirement = Requirement(line.split("--hash")[0])
    (pin,) = requirement.specifier
    assert pin.operator == "==", f"not pinned: {line}"
    name = canonicalize_name(requirement.name)
    return Entry(name, pin.version, requirement.marker, tuple(HASH.findall(line)))


def declared(*tables: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [Requirement(text) for table in tables for text in dig(project, table)]


def dig(project: dict[str, Any], table: str) -> Iterable[str]:
    found: Any = project
    for key in table.split("."):
        found = found[key]
    return list(found)


@LOCKS
def test_a_lock_names_no_address(path: Path) -> None:
    text = path.read_text()

    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, re.MULTILINE), "an option such as --index-url"
    assert not re.search(r"\.(org|com|net|io|dev)\b", text), "a host"


@LOCKS
def test_every_entry_has_a_hash(path: Path) -> None:
    entries = read(path)

    assert len(entries) > 50
    assert [entry.name for entry in entries if not entry.hashes] == []


@LOCKS
def test_torch_is_never_pulled_in(path: Path) -> None:
    names = {entry.name for entry in read(path)}

    assert not names & {"torch", "torchvision", "torchaudio", "tensorflow", "jax"}


@LOCKS
@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: "-".join(platform.values()))
def test_a_platform_gets_one_version_of_everything(path: Path, platform: dict[str, str]) -> None:
    names = [entry.name for entry in read(path) if entry.applies(platform)]

    assert len(names) == len(set(names))
    assert {"mlx", "mlx-lm", "tokenizers"} <= set(names)
    assert ("mlx-cpu" in names) == (platform["sys_platform"] == "linux")
    assert ("mlx-metal" in names) == (platform["sys_platform"] == "darwin")


@pytest.mark.parametrize(
    ("path", "tables"),
    [
        (RUNTIME, ["project.dependencies", "dependency-groups.build"]),
        (DEVELOPMENT, ["dependency-groups.dev", "project.optional-dependencies.cloud"]),
    ],
    ids=["runtime", "development"],
)
def test_a_lock_satisfies_what_the_project_declares(path: Path, tables: list[str]) -> None:
    versions = {entry.name: entry.version for entry in read(path)}

    unmet = [
        str(requirement)
        for requirement in declared(*tables)
        if not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), ""))
    ]

    assert unmet == [], "run `make lock`"


def test_the_cuda_extra_takes_the_mlx_that_is_locked() -> None:
    (extra,) = declared("project.optional-dependencies.cuda13")
    [locked] = [entry.version for entry in read(RUNTIME) if entry.name == "mlx"]

    assert (extra.name, extra.extras) == ("mlx", {"cuda13"})
    assert extra.specifier.contains(locked)
    assert extra.marker is not None
    assert [extra.marker.evaluate({"sys_platform": one}) for one in ("linux", "darwin")] == [
        True,
        False,
    ]


def test_the_readme_says_how_to_install_the_cuda_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()

    assert "cuda13" in project["optional-dependencies"]
    assert f"pip install '{project['name']}[cuda13]'" in readme


def test_logfire_comes_with_what_it_instruments() -> None:
    (logfire,) = [one for one in declared("project.dependencies") if one.name == "logfire"]
    locked = {entry.name for entry in read(RUNTIME)}

    assert logfire.extras == {"fastapi", "httpx", "sqlalchemy"}
    for instrumented in logfire.extras:
        assert f"opentelemetry-instrumentation-{instrumented}" in locked


def test_the_development_lock_holds_the_runtime_lock() -> None:
    assert set(read(RUNTIME)) <= set(read(DEVELOPMENT))


IMPORT_ALL = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"{name} is for developers only", name=name)

sys.meta_path.insert(0, Blocked())
import mlx_manager
for module in pkgutil.walk_packages(mlx_manager.__path__, "mlx_manager."):
    # Those are run, and not imported.
    if not module.name.endswith(("__main__", "migrations.env")):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_every_module_is_there_with_what_the_runtime_lock_installs() -> None:
    """`make serve` installs that alone."""
    installed = {entry.name for entry in read(RUNTIME)} | {"mlx-manager"}
    others = [
        module
        for module, distributions in packages_distributions().items()
        if installed.isdisjoint(map(canonicalize_name, distributions))
    ]
    assert {"pytest", "openai", "anthropic", "playwright"} <= set(others)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *others], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mlx_manager.mlx_server.engine.engine" in done.stdout
