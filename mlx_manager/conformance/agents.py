"""Bodies that agents and their libraries really sent, to a server that recorded them, each in one or two turns.

Texts of more than 72 characters are left out of them, and identifiers are zeroed; fields and schemas are as they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_manager.conformance.recorded import Recorded

RECORDINGS = Path(__file__).parent / "recordings"
FORCED = "this family of models can't be made to call a tool"
HELD = "the calls of this family of models can't be held to anything"
FREE_CHOICES = (None, "none", "auto")


def recorded_agents() -> Iterator[Recorded]:
    """Yield what every agent sent."""
    for file in sorted(RECORDINGS.glob("*.json")):
        client = json.loads(file.read_text())
        for one in client["requests"]:
            body = one["body"]
            yield Recorded(
                client["client"],
                one["what"],
                one["path"],
                body,
                one["headers"],
                may_refuse(body),
            )


def may_refuse(body: Mapping[str, Any]) -> str:
    """Return why some families of models may refuse a body with `unsupported_parameter`; empty where none may."""
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    if not tools:
        return ""
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind not in FREE_CHOICES:
        return FORCED
    is_strict = any((tool.get("function") or tool).get("strict") for tool in tools)
    is_held = "response_format" in body or "format" in (body.get("text") or {})
    return HELD if is_strict or is_held else ""


AGENTS = tuple(recorded_agents())
