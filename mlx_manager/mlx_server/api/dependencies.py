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


CurrentState = Annotated[ServerState, Depends(_state)]
CurrentEntry = Annotated[Entry, Depends(_entry)]
