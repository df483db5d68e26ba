"""The support tables of `docs/api.md` have every parameter that the installed SDKs' methods can send."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from anthropic.resources import Messages
from openai.resources import Completions as TextCompletions
from openai.resources import Embeddings
from openai.resources.chat import Completions as ChatCompletions
from openai.resources.responses import Responses
from openai.resources.responses.input_tokens import InputTokens

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
# Of the client, and in no body.
OF_THE_CLIENT = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
# What `parse` has besides: a class, which becomes `text.format`, `response_format` or `output_config`.
CLASSES = {"text_format", "output_format", "parse_as"}
NAME = re.compile(r"`([^`]+)`")


def section(name: str) -> str:
    """What stands between the marks of a table."""
    return PAGE.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]


def column(table: str, title: str) -> set[str]:
    """The parameters of a table with a "yes" below a title."""
    header, _, *rows = [line.strip("| ").split("|") for line in section(table).strip().split("\n")]
    at = [one.strip() for one in header].index(title)
    cells = ([cell.strip() for cell in [*row, "", ""]] for row in rows)
    return {row[0].strip("`") for row in cells if row[at] == "yes"}


def named(*tables: str) -> set[str]:
    """The parameters that tables or lists begin their lines with."""
    found = set[str]()
    for table in tables:
        text = section(table)
        lines = [line.split("|")[1] for line in text.split("\n") if line.startswith("|")]
        found |= set(NAME.findall(" ".join(lines or [text])))
    return found


OPENAI = named("accepted", "neutral")
RESPONSES = named("responses-accepted", "responses-neutral")
ANTHROPIC = named("anthropic-accepted", "anthropic-neutral")
METHODS: list[tuple[Callable[..., Any], set[str]]] = [
    (ChatCompletions.create, column("honoured", "chat") | OPENAI),
    (ChatCompletions.parse, column("honoured", "chat") | OPENAI),
    (ChatCompletions.stream, column("honoured", "chat") | OPENAI),
    (TextCompletions.create, column("honoured", "text") | OPENAI),
    (Embeddings.create, named("embeddings") | OPENAI),
    (Responses.create, column("responses-honoured", "responses") | RESPONSES),
    (Responses.parse, column("responses-honoured", "responses") | RESPONSES),
    (InputTokens.count, column("responses-honoured", "responses") | RESPONSES),
    (Messages.create, column("anthropic-honoured", "messages") | ANTHROPIC),
    (Messages.parse, column("anthropic-honoured", "messages") | ANTHROPIC),
    (Messages.stream, column("anthropic-honoured", "messages") | ANTHROPIC),
    (
        Messages.count_tokens,
        column("anthropic-honoured", "count_tokens") | ANTHROPIC | named("anthropic-counted"),
    ),
]


def missing(names: Iterable[str], known: set[str]) -> list[str]:
    return sorted(set(names) - OF_THE_CLIENT - known)


@pytest.mark.parametrize(
    ("method", "known"), METHODS, ids=lambda one: getattr(one, "__qualname__", "")
)
def test_every_argument_of_a_method_is_in_a_table(
    method: Callable[..., Any], known: set[str]
) -> None:
    sent = set(inspect.signature(method).parameters) - CLASSES
    assert len(sent - OF_THE_CLIENT) > 3
    assert missing(sent, known) == []


def test_the_tables_are_read_as_they_are_meant() -> None:
    chat, text = column("honoured", "chat"), column("honoured", "text")
    assert ("messages" in chat, "messages" in text) == (True, False)
    assert ("prompt" in chat, "prompt" in text) == (False, True)
    assert "max_tokens" not in column("anthropic-honoured", "count_tokens")
    assert missing(["temperature", "unheard_of"], chat) == ["unheard_of"]
    # Values that are accepted are no names.
    assert "none" not in OPENAI
    assert '"none"' not in OPENAI
