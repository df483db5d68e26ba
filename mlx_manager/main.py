"""The manager's process: `uvicorn mlx_manager.main:app`, or `mlx-manager serve`."""

# ruff: noqa: E402
# Telemetry is configured between the imports on purpose: before anything that it instruments is imported.

from __future__ import annotations

from mlx_manager.config import Settings
from mlx_manager.mlx_server.config import Settings as ServerSettings
from mlx_manager.mlx_server.observability.logfire_config import instrument_llm_clients
from mlx_manager.observability.logfire_config import configure_logfire, instrument_httpx

settings = Settings()
configure_logfire(environment=settings.environment, console=settings.console)
instrument_httpx()
instrument_llm_clients()

from mlx_manager.app import create_app

app = create_app(ServerSettings(), settings)
