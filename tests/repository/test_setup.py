"""What a newcomer is told when the machine does not fit, and that every script parses."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_manager.mlx_server.workers.blas import find_openblas
from tests.support.browser import BROWSERS, find_browser
from tools.setup.check_platform import obstacle

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "tools" / "setup").glob("*.sh"))


@pytest.fixture
def few_tools(tmp_path: Path) -> Path:
    """A folder to be the PATH of a machine that has what the scripts need, and nothing else."""
    for tool in ("uname", "id", "dirname", "sh"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


@pytest.mark.parametrize(
    ("system", "machine", "release"),
    [("Darwin", "arm64", "14.5"), ("Linux", "x86_64", "2.36"), ("Linux", "aarch64", "2.39")],
)
def test_a_machine_with_mlx_wheels_meets_no_obstacle(
    system: str, machine: str, release: str
) -> None:
    assert obstacle(system, machine, release) is None


@pytest.mark.parametrize(
    ("system", "machine", "release", "names"),
    [
        ("Darwin", "x86_64", "14.5", "x86_64"),
        ("Darwin", "arm64", "13.6", "13.6"),
        ("Linux", "x86_64", "2.31", "2.31"),
        ("Linux", "x86_64", "", "musl"),
        ("Windows", "AMD64", "", "Windows"),
    ],
)
def test_an_obstacle_names_what_was_found(
    system: str, machine: str, release: str, names: str
) -> None:
    sentence = obstacle(system, machine, release)

    assert sentence is not None
    assert names in sentence


def test_a_python_that_is_too_old_or_missing_is_named() -> None:
    found = run("find-python.sh", PYTHON="no-such-python")

    assert found.returncode == 1
    assert "PYTHON=no-such-python" in found.stderr


def test_system_packages_can_be_turned_off() -> None:
    skipped = run("system-packages.sh", "test", SYSTEM_PACKAGES="no")

    assert (skipped.returncode, skipped.stdout) == (0, "")


def test_a_machine_without_apt_is_told_what_to_add_and_goes_on(few_tools: Path) -> None:
    told = run("system-packages.sh", "test", PATH=str(few_tools))

    assert told.returncode == 0
    assert "apt-get" not in told.stdout
    assert "chromium" in told.stdout or told.stdout == ""


def test_the_scripts_find_the_openblas_that_engines_preload() -> None:
    found = run("find-openblas.sh")
    preloaded = run("with-openblas.sh", "sh", "-c", 'printf %s "${LD_PRELOAD:-}"')

    assert found.returncode == preloaded.returncode == 0
    assert found.stdout.strip() == preloaded.stdout == str(find_openblas() or "")


def test_a_command_with_openblas_keeps_its_users_number_of_threads() -> None:
    show = ("sh", "-c", 'printf %s "${OPENBLAS_NUM_THREADS:-unset}"')

    assert run("with-openblas.sh", *show).stdout == "unset"
    assert run("with-openblas.sh", *show, OPENBLAS_NUM_THREADS="1").stdout == "1"


def test_set_up_asks_for_what_is_missing_and_for_nothing_else(few_tools: Path) -> None:
    told = run("system-packages.sh", "test", PATH=str(few_tools)).stdout

    assert ("openblas" in told) == (find_openblas() is None and sys.platform == "linux")
    assert ("chromium" in told) == (sys.platform == "linux")


@pytest.mark.parametrize("browser", BROWSERS)
def test_set_up_takes_the_browsers_that_the_tests_of_the_pages_take(
    few_tools: Path, monkeypatch: pytest.MonkeyPatch, browser: str
) -> None:
    (few_tools / browser).symlink_to("/usr/bin/env")
    monkeypatch.setenv("PATH", str(few_tools))

    told = run("system-packages.sh", "test", PATH=str(few_tools)).stdout

    assert find_browser() == str(few_tools / browser)
    assert "chromium" not in told


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_a_script_parses(script: Path) -> None:
    shell = "bash" if script.name == "run" else "sh"

    subprocess.run([shell, "-n", str(script)], check=True)


def run(script: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a script of tools/setup with its own environment, which may hold another PATH."""
    return subprocess.run(
        ["/bin/sh", str(ROOT / "tools" / "setup" / script), *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
