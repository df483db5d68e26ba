"""Which API's words a path below `/v1` speaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Dialect = Literal["openai", "anthropic"]

MODEL_API = "/v1/"
ANTHROPIC_ALWAYS = "/v1/messages/"
# Both APIs have these paths; Anthropic's clients send this header with every request.
ANTHROPIC_BY_HEADER = "/v1/models/"
ANTHROPIC_VERSION = "anthropic-version"


def dialect_of(path: str, headers: Mapping[str, str]) -> Dialect | None:
    """Return the dialect that answers `path`, as routes are matched against it; None outside of the model API."""
    path = f"{path}/"
    if path.startswith(ANTHROPIC_ALWAYS):
        return "anthropic"
    if path.startswith(ANTHROPIC_BY_HEADER) and ANTHROPIC_VERSION in headers:
        return "anthropic"
    return "openai" if path.startswith(MODEL_API) else None
