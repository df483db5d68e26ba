"""What the starter's answers name exists: variables, paths, commands, options, files. Their truth people check."""

import re
from collections.abc import Iterator
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from mlx_manager.app import create_app as create_manager
from mlx_manager.cli import app as command_line
from mlx_manager.config import Settings as ManagerSettings
from mlx_manager.mlx_server.config import Settings as ServerSettings
from tools.starter.knowledge import topics, unknown

ROOT = Path(__file__).parents[2]
SETTINGS = (ManagerSettings, ServerSettings)
ANSWERS = {topic.id: topic.answer for topic in topics().values()} | {"unknown": unknown().answer}
# Not in an address (`10242/v1`) and not the end of a mark (`</think>`).
PATH = re.compile(r"(?<![\w./<:])/[a-z_][\w/]*")
ADDRESS = re.compile(r"http://([\d.]+):(\d+)(/\w+)?")


def named(pattern: str | re.Pattern[str]) -> set[str]:
    """Everything in the answers that a pattern finds."""
    return {match.group() for answer in ANSWERS.values() for match in re.finditer(pattern, answer)}


def variables() -> set[str]:
    return {
        f"{settings.model_config.get('env_prefix', '')}{field.upper()}"
        for settings in SETTINGS
        for field in settings.model_fields
    }


def routes() -> set[str]:
    """Every path that the manager, which has the server's too, answers to."""
    described = set(create_manager(ServerSettings.model_construct()).openapi()["paths"])
    return described | set(re.findall(r"`(/[\w/]*)`", pages_in_the_documentation()))


def pages_in_the_documentation() -> str:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    return next(line for line in text.splitlines() if "pages for people" in line)


def commands() -> dict[str, set[str]]:
    """Every command of `mlx-manager` with its options; those without a command under ''."""
    group = typer.main.get_command(command_line)
    assert isinstance(group, TyperGroup)
    found = {"": group, **group.commands}
    return {
        name: {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for name, command in found.items()
    }


def invocations() -> Iterator[list[str]]:
    for invocation in named(r"(?<=`)mlx-manager [^`]+(?=`)"):
        yield invocation.split()[1:]


def test_variables_exist() -> None:
    known = variables() | {"LOGFIRE_TOKEN"}
    found = named(r"\b[A-Z]+(?:_[A-Z]+)+\b(?!_?\*)")
    assert found
    assert found <= known
    assert "`LOGFIRE_TOKEN`" in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def test_prefixes_of_variables_exist() -> None:
    prefixes = {f"{settings.model_config.get('env_prefix')}*" for settings in SETTINGS}
    assert named(r"\b[A-Z_]+\*") == prefixes


def test_paths_exist() -> None:
    found = named(PATH)
    assert "/v1/chat/completions" in found
    assert found <= routes()


def test_addresses_are_where_it_listens() -> None:
    base = {path.split("/")[1] for path in routes()}
    found = [match for answer in ANSWERS.values() for match in ADDRESS.finditer(answer)]
    assert found
    defaults = ManagerSettings.model_construct()
    for match in found:
        host, port, path = match.groups()
        assert (host, int(port)) == (defaults.host, defaults.port)
        assert path is None or path.removeprefix("/") in base


def test_commands_and_their_options_exist() -> None:
    known = commands()
    found = list(invocations())
    assert found
    for words in found:
        name = "" if words[0].startswith("--") else words[0]
        assert name in known
        assert {word for word in words if word.startswith("--")} <= known[name]


def test_the_command_line_s_answer_names_commands() -> None:
    quoted = re.findall(r"`([a-z]+)`", ANSWERS["command_line"])
    assert quoted
    assert set(quoted) <= set(commands())


def test_options_exist() -> None:
    known = set().union(*commands().values())
    found = named(r"(?<![\w-])--[a-z][a-z-]+")
    assert found
    assert found <= known


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = named(r"(?<=`make )[a-z-]+")
    assert found
    assert found <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_files_exist() -> None:
    found = named(r"\bdocs/[\w./-]+\w")
    assert found
    assert [name for name in found if not (ROOT / name).is_file()] == []


def test_headers_are_documented() -> None:
    documented = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    found = named(r"\bX-[A-Za-z-]+")
    assert found
    assert [name for name in found if f"`{name}`" not in documented] == []


def test_extras_and_the_download_command_exist() -> None:
    extras = named(r"(?<=mlx-manager\[)\w+")
    assert extras
    assert extras <= set(metadata("mlx-manager").get_all("Provides-Extra") or [])
    assert entry_points(group="console_scripts", name="hf")


@pytest.mark.parametrize("invented", ["/v1/chats", "GET /healthy", "(/v2)", "and /v1/message."])
def test_an_invented_path_would_be_noticed(invented: str) -> None:
    assert not set(PATH.findall(invented)) <= routes()
