"""`docs/telemetry.md` lists every log event of ours, with its level, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mlx_manager
from mlx_manager.log import event_of
from tools.document import DOCS

PACKAGE = Path(mlx_manager.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def logged(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Event and level of each call of a `logger`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="logger"), attr=level), args=[template, *_]
            ) if level in LEVELS:
                yield named_event(node) or event_of(ast.literal_eval(template)), level


def named_event(call: ast.Call) -> str | None:
    """The event that the call names itself, where its template begins with a field."""
    for keyword in call.keywords:
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
            for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                if key is not None and ast.literal_eval(key) == "event":
                    return str(ast.literal_eval(value))
    return None


def in_code() -> set[tuple[str, str]]:
    found = set[tuple[str, str]]()
    for file in PACKAGE.rglob("*.py"):
        found |= set(logged(ast.parse(file.read_text())))
    return found


def in_documentation() -> set[tuple[str, str]]:
    page = (DOCS / "telemetry.md").read_text()
    section = page.split("## Log events", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^\| `([^`]+)` \| (\w+) \|", section, re.MULTILINE))


def test_every_log_event_is_listed_and_no_other() -> None:
    assert in_code() - in_documentation() == set(), "logged, and not described"
    assert in_documentation() - in_code() == set(), "described, and never logged"


def test_every_logger_of_ours_is_called_logger_and_every_event_has_a_name() -> None:
    for file in PACKAGE.rglob("*.py"):
        named = re.findall(r"^(\w+) = logging\.getLogger\(", file.read_text(), re.MULTILINE)
        assert set(named) <= {"logger"}, file
    assert all(event for event, _ in in_code())
