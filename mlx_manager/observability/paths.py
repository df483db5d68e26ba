"""The path that rules about paths go by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def route_path(scope: Mapping[str, Any]) -> str:
    """The path that routes are matched against: without the prefix under which a proxy serves the application.

    ASGI puts that prefix (`root_path`, uvicorn's `--root-path`) in front of `path`. A rule that forgets it lets through
    what it should stop.
    """
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    return path.removeprefix(prefix) if prefix and path.startswith(f"{prefix}/") else path
