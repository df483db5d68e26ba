"""The manager's process: `uvicorn mlx_manager.main:app`, or `mlx-manager serve`."""

# ruff: noqa: E402
# Telemetry is configured between the imports on purpose: before anything that it instruments is used.

from __future__ import annotations

from mlx_manager.config import Settings
from mlx_manager.long_lived import keep_all_so_far
from mlx_manager.mlx_server.config import Settings as ServerSettings
from mlx_manager.mlx_server.observability.logfire_config import instrument_llm_clients
from mlx_manager.observability.logfire_config import configure_logfire, instrument_httpx

settings, server_settings = Settings(), ServerSettings()
configure_logfire(
    environment=settings.environment
    if settings.is_set("environment")
    else server_settings.environment,
    console=settings.console or server_settings.console,
    metrics=server_settings.metrics,
    sample_ratio=server_settings.trace_sample_ratio,
    slow_s=server_settings.trace_slow_s,
    records_content=server_settings.records_content,
)
instrument_httpx()
instrument_llm_clients()

from mlx_manager.app import create_app

app = create_app(server_settings, settings)
keep_all_so_far()
