"""Settings of the manager, read once in `main` and passed down. The server's own are `MLX_SERVER_*`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Every field is the environment variable `MLX_MANAGER_` + its name in capitals; `docs/settings.md` lists them."""

    model_config = SettingsConfigDict(env_prefix="MLX_MANAGER_", frozen=True, extra="ignore")

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Others than the local machine can reach 0.0.0.0.",
    )
    port: int = Field(10242, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    environment: Literal["development", "production"] = Field(
        "development", description="Where this runs; goes into the telemetry resource."
    )
    console: bool = Field(False, description="Print spans to the terminal, readable, as they end.")
