"""The reference pages and the code say the same: settings, endpoints, telemetry."""

import re
from collections.abc import Set
from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic_settings import BaseSettings

from mlx_manager import app as manager_app
from mlx_manager.config import Settings as ManagerSettings
from mlx_manager.mlx_server.api import health
from mlx_manager.mlx_server.app import install_server
from mlx_manager.mlx_server.config import Settings as ServerSettings
from mlx_manager.observability import attributes

DOCS = Path(__file__).parents[2] / "docs"


def test_settings_lists_every_setting_and_no_other() -> None:
    described = set(re.findall(r"`(MLX_(?:SERVER|MANAGER)_[A-Z0-9_]+)`", page("settings.md")))

    assert described == variables(ServerSettings) | variables(ManagerSettings)


def test_telemetry_lists_every_name_and_no_other() -> None:
    quoted = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", page("telemetry.md")))
    ours = {name for name in quoted if name.startswith(("gen_ai.", "mlx."))}

    assert emitted() - quoted == set(), "emitted, and not described"
    assert ours - emitted() == set(), "described, and never emitted"


def test_api_lists_every_endpoint_and_no_other() -> None:
    described = set(re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`]*)`", page("api.md")))

    assert described == endpoints()


def page(name: str) -> str:
    path = DOCS / name
    if not path.exists():
        pytest.skip(f"docs/{name} is not written yet")
    return path.read_text()


def variables(settings: type[BaseSettings]) -> Set[str]:
    prefix = settings.model_config.get("env_prefix", "")
    return {f"{prefix}{field}".upper() for field in settings.model_fields}


def emitted() -> Set[str]:
    values = [value for name, value in vars(attributes).items() if name.isupper()]
    metrics = {value.name for value in values if isinstance(value, attributes.Metric)}
    return metrics | {value for value in values if isinstance(value, str)}


def endpoints() -> Set[str]:
    app = FastAPI()
    install_server(app)
    app.include_router(health.router)
    app.include_router(manager_app.router)
    return {
        f"{method.upper()} {path}"
        for path, operations in app.openapi()["paths"].items()
        for method in operations
    }
