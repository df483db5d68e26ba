"""Write into the documentation what the code knows: settings, endpoints, parameters.

`python -m tools.document` rewrites what stands between the marks in `docs/settings.md` and `docs/api.md`; a test
fails while they differ from the code.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic_settings import BaseSettings

from mlx_manager.app import create_app as create_manager
from mlx_manager.config import Settings as ManagerSettings
from mlx_manager.mlx_server.app import create_app as create_server
from mlx_manager.mlx_server.config import Settings as ServerSettings
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.wire.anthropic import parameters as anthropic
from mlx_manager.wire.anthropic.schema import CountTokensBody, MessagesBody, ModelsQuery
from mlx_manager.wire.openai.embeddings import EmbeddingsBody
from mlx_manager.wire.openai.parameters import HARMLESS, NEUTRAL_VALUES
from mlx_manager.wire.openai.responses import parameters as responses
from mlx_manager.wire.openai.responses.schema import ResponsesBody
from mlx_manager.wire.openai.schema import ChatCompletionBody, CompletionBody
from mlx_manager.wire.openai.tokens import DetokenizeBody, TokenizeBody

DOCS = Path(__file__).parent.parent / "docs"
METHODS = ("get", "post", "put", "patch", "delete")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(header), ["---"] * len(list(header)), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings_table(kind: type[BaseSettings]) -> str:
    """Return every setting of one application: variable, default, meaning."""
    prefix = str(kind.model_config.get("env_prefix", ""))
    rows = [
        (f"`{prefix}{name.upper()}`", _default(field.default), field.description or "")
        for name, field in kind.model_fields.items()
    ]
    return table(("Variable", "Default", "Meaning"), rows)


def model_settings_table() -> str:
    """Return what can be set for one model: name, default, meaning."""
    rows = [
        (f"`{name}`", _default(field.default), field.description or "")
        for name, field in ModelSettings.model_fields.items()
    ]
    return table(("Name", "Default", "Meaning"), rows)


def _default(value: object) -> str:
    if value is None or value == ():
        return "none"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text.replace(str(Path.home()), '~')}`"


def endpoints_table(app: FastAPI) -> str:
    """Return every endpoint that an application describes: method, path, what it does."""
    paths: dict[str, dict[str, Any]] = app.openapi()["paths"]
    rows = [
        (f"`{method.upper()} {path}`", " ".join(operations[method]["description"].split()))
        for path, operations in sorted(paths.items())
        for method in METHODS
        if method in operations
    ]
    return table(("Endpoint", "What it does"), rows)


def honoured_table(**bodies: type[BaseModel]) -> str:
    """Return the parameters that shape what each of two endpoints answers."""
    names = dict.fromkeys(name for body in bodies.values() for name in body.model_fields)
    rows = [
        (f"`{name}`", *("yes" if name in body.model_fields else "" for body in bodies.values()))
        for name in names
    ]
    return table(("Parameter", *bodies), rows)


def described_table(body: type[BaseModel]) -> str:
    """Return the parameters of an endpoint, each with what it means."""
    fields = body.model_fields.items()
    return table(
        ("Parameter", "Meaning"), [(f"`{name}`", one.description or "") for name, one in fields]
    )


def accepted_table(names: Iterable[str]) -> str:
    """Return the parameters that are accepted because they can't change a local answer."""
    return ", ".join(f"`{name}`" for name in sorted(names))


def neutral_table(values: Mapping[str, tuple[Any, ...]]) -> str:
    """Return the parameters that are refused unless they say "not used"."""
    rows = [
        (f"`{name}`", ", ".join(f"`{_json(value)}`" for value in (None, *allowed)))
        for name, allowed in values.items()
    ]
    return table(("Parameter", "Accepted values"), rows)


def _json(value: object) -> str:
    return json.dumps(value)


SECTIONS: dict[str, Callable[[], str]] = {
    "settings.md manager": lambda: settings_table(ManagerSettings),
    "settings.md server": lambda: settings_table(ServerSettings),
    "settings.md models": model_settings_table,
    "api.md manager": lambda: endpoints_table(create_manager(ServerSettings())),
    "api.md server": lambda: endpoints_table(create_server(ServerSettings())),
    "api.md honoured": lambda: honoured_table(chat=ChatCompletionBody, text=CompletionBody),
    "api.md embeddings": lambda: described_table(EmbeddingsBody),
    "api.md tokenize": lambda: described_table(TokenizeBody),
    "api.md detokenize": lambda: described_table(DetokenizeBody),
    "api.md accepted": lambda: accepted_table(HARMLESS),
    "api.md neutral": lambda: neutral_table(dict(sorted(NEUTRAL_VALUES.items()))),
    "api.md responses-honoured": lambda: honoured_table(responses=ResponsesBody),
    "api.md responses-accepted": lambda: accepted_table(responses.HARMLESS),
    "api.md responses-neutral": lambda: neutral_table(
        dict(sorted(responses.NEUTRAL_VALUES.items()))
    ),
    "api.md anthropic-honoured": lambda: honoured_table(
        messages=MessagesBody, count_tokens=CountTokensBody
    ),
    "api.md anthropic-models": lambda: described_table(ModelsQuery),
    "api.md anthropic-accepted": lambda: accepted_table(anthropic.HARMLESS),
    "api.md anthropic-counted": lambda: accepted_table(anthropic.HARMLESS_TO_A_COUNT),
    "api.md anthropic-neutral": lambda: neutral_table(anthropic.NEUTRAL_VALUES),
}


def documented(text: str, file: str) -> str:
    """Return a page's text with what the code knows between its marks."""
    for key, make in SECTIONS.items():
        page, section = key.split()
        if page == file:
            begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
            before, found, rest = text.partition(begin)
            _, closed, after = rest.partition(end)
            if not (found and closed):
                raise ValueError(f"{file} has no section between {begin} and {end}")
            text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def main() -> None:
    """Rewrite the pages."""
    for file in ("settings.md", "api.md"):
        path = DOCS / file
        path.write_text(documented(path.read_text(), file))


if __name__ == "__main__":
    if any(name.startswith(("MLX_SERVER_", "MLX_MANAGER_")) for name in os.environ):
        sys.exit("Unset the MLX_ variables first: the documented defaults are those of the code.")
    main()
