"""What a newcomer is told when the machine does not fit, and that every script parses."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_manager.mlx_server.workers.blas import find_openblas
from tests.support.browser import BROWSERS, find_browser, open_browser
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


def test_a_package_that_apt_refuses_is_gone_without(few_tools: Path) -> None:
    fake(few_tools, "id", "echo 0")
    fake(few_tools, "apt-get", 'echo "$*" >>"$0.calls"', "echo 'E: refused here' >&2", "exit 100")

    told = debian(few_tools)

    assert told.returncode == 0
    for package in ("g++", "chromium"):
        assert f"apt-get could not install {package}; going on without it" in told.stdout
    assert "E: refused here" in told.stdout
    assert "install -y --no-install-recommends g++" in (few_tools / "apt-get.calls").read_text()


def test_apt_without_the_right_to_use_it_is_left_alone(few_tools: Path) -> None:
    fake(few_tools, "id", "echo 1000")
    fake(few_tools, "sudo", "echo 'sudo: a password is required' >&2", "exit 1")
    fake(few_tools, "apt-get", 'echo "$*" >>"$0.calls"')

    told = debian(few_tools)

    assert (told.returncode, told.stderr) == (0, "")
    assert "Not installed here, and worth adding by hand" in told.stdout
    assert "chromium" in told.stdout
    assert not (few_tools / "apt-get.calls").exists()


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


@pytest.mark.parametrize(
    ("required", "outcome"), [("", pytest.skip.Exception), ("required", pytest.fail.Exception)]
)
def test_without_a_browser_one_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BROWSER_TESTS", required)

    with pytest.raises(outcome, match="apt-get install chromium"), open_browser():
        pass


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["python3.14", "python3.12", "python3"], "python3.12"),
        (["python3.14", "python3"], "python3"),
        (["python3.14"], "python3.14"),
    ],
)
def test_a_python_that_is_not_shown_to_work_is_the_last_choice(
    few_tools: Path, there: list[str], chosen: str
) -> None:
    for name in there:
        fake(few_tools, name, "exit 0")

    assert run("find-python.sh", PATH=str(few_tools)).stdout.strip() == str(few_tools / chosen)


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_a_script_parses(script: Path) -> None:
    shell = "bash" if script.name == "run" else "sh"

    subprocess.run([shell, "-n", str(script)], check=True)


def fake(folder: Path, name: str, *lines: str) -> None:
    """Put a command of that name into a folder, in place of the one that may be there."""
    (folder / name).unlink(missing_ok=True)  # it may be a link to the real one
    (folder / name).write_text("\n".join(("#!/bin/sh", *lines, "")))
    (folder / name).chmod(0o755)


def debian(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Add what the tests need on a Debian whose commands are those of a folder."""
    fake(folder, "uname", "echo Linux")
    for tool in ("env", "tail"):
        (folder / tool).symlink_to(str(shutil.which(tool)))
    return run("system-packages.sh", "test", PATH=str(folder))


def run(script: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a script of tools/setup with its own environment, which may hold another PATH."""
    return subprocess.run(
        ["/bin/sh", str(ROOT / "tools" / "setup" / script), *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
