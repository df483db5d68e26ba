"""What a newcomer is told when the machine does not fit, and that every script parses."""

import subprocess
from pathlib import Path

import pytest

from tools.setup.check_platform import obstacle

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "tools" / "setup").glob("*.sh"))


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


def test_a_machine_without_apt_is_told_what_to_add_and_goes_on(tmp_path: Path) -> None:
    for tool in ("uname", "id"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")

    told = run("system-packages.sh", "test", PATH=str(tmp_path))

    assert told.returncode == 0
    assert "apt-get" not in told.stdout
    assert "chromium" in told.stdout or told.stdout == ""


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
