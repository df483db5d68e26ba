"""Telemetry of the manager: what `main` calls before anything instrumented is imported or used."""

from __future__ import annotations

from mlx_manager.observability.instrumentation import (
    instrument_fastapi,
    instrument_httpx,
    instrument_sqlalchemy,
)
from mlx_manager.observability.setup import Environment, TelemetryOptions, configure

__all__ = ["configure_logfire", "instrument_fastapi", "instrument_httpx", "instrument_sqlalchemy"]

SERVICE_NAME = "mlx-manager"


def configure_logfire(
    environment: Environment = "development", console: bool = False, metrics: bool = False
) -> None:
    """Configure the process's telemetry as the manager's; harmless and silent when it is configured already."""
    configure(TelemetryOptions(SERVICE_NAME, environment, console, metrics))
