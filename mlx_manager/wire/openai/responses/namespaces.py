"""Functions that are grouped under a name, as Codex sends those for its sub-agents.

A model is told of them as of others, with the group's name before theirs; the client has the two apart.
"""

from __future__ import annotations

from typing import Any

from mlx_manager.chat.request import ChatRequest, Conversation

NAMESPACE = "namespace"
BETWEEN = "__"


def joined(namespace: str | None, name: str) -> str:
    """Return the name by which the model knows a function."""
    return name if namespace is None else f"{namespace}{BETWEEN}{name}"


def apart(request: ChatRequest, name: str) -> dict[str, Any]:
    """Return the fields that name a function to the client, from the name by which the model called it."""
    assert isinstance(request.input, Conversation)
    of = {tool.name: tool.namespace for tool in request.input.tools}.get(name)
    if of is None:
        return {"name": name}
    return {"name": name.removeprefix(joined(of, "")), "namespace": of}
