"""The inference server's process: `uvicorn mlx_manager.mlx_server.main:app`, or `mlx-manager server`."""

# ruff: noqa: E402
# Telemetry is configured between the imports on purpose: before anything that it instruments is used.

from __future__ import annotations

from mlx_manager.long_lived import keep_all_so_far
from mlx_manager.mlx_server.config import Settings
from mlx_manager.mlx_server.observability.logfire_config import (
    configure_logfire,
    instrument_httpx,
    instrument_llm_clients,
)

settings = Settings()
configure_logfire(
    environment=settings.environment,
    console=settings.console,
    metrics=settings.metrics,
    sample_ratio=settings.trace_sample_ratio,
    slow_s=settings.trace_slow_s,
    records_content=settings.records_content,
)
instrument_httpx()
instrument_llm_clients()

from mlx_manager.mlx_server.app import create_app

app = create_app(settings)
keep_all_so_far()
