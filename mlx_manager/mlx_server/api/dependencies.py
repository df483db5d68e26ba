"""What routes ask for: the server's parts, and the audit log's entry of a request, which says where it came from."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from mlx_manager.mlx_server.audit.entry import Entry
from mlx_manager.mlx_server.state import ServerState

# Coroutines, though nothing in them waits: FastAPI runs plain functions in a thread, and a hop costs more than they do.


async def _state(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state


async def _entry(request: Request) -> Entry:
    entry: Entry = request.state.audit_entry
    return entry


async def _key_id(request: Request) -> str | None:
    key_id: str | None = request.scope["state"].get("key_id")
    return key_id


CurrentState = Annotated[ServerState, Depends(_state)]
CurrentEntry = Annotated[Entry, Depends(_entry)]
# The id of the key that a request came with, None where the server needs none.
CurrentKeyId = Annotated[str | None, Depends(_key_id)]
