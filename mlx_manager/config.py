"""Settings of the manager, read once in `main` and passed down. The server's own are `MLX_SERVER_*`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Every field is the environment variable `MLX_MANAGER_` + its name in capitals; `docs/settings.md` lists them."""

    model_config = SettingsConfigDict(
        env_prefix="MLX_MANAGER_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Others than the local machine can reach 0.0.0.0.",
    )
    port: int = Field(10242, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    environment: Literal["development", "production"] = Field(
        "development",
        description="Where this runs; goes into the telemetry resource. Unset, `MLX_SERVER_ENVIRONMENT` holds.",
    )
    console: bool = Field(
        False,
        description="Print spans to the terminal, readable, as they end. `MLX_SERVER_CONSOLE=true` does so, too.",
    )
    open_ui: bool = Field(
        False,
        description="Let other machines use the pages and the administration below `/api`. There are no accounts yet: "
        "whoever reaches the port then sees and changes everything.",
    )
    host_names: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names, besides `localhost` and the host, that the pages may be called by; separated by commas.",
    )

    def is_set(self, name: str) -> bool:
        """Whether somebody chose the value of that field, so that it isn't the default."""
        return name in self.model_fields_set

    @field_validator("host_names", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            # A list in the configuration file comes joined like PATH.
            return tuple(filter(None, re.split(r"[,\s:;]+", value)))
        return value
