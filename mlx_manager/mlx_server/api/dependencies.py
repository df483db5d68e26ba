"""What routes ask for: the server's parts, and where a request came from."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from mlx_manager.chat.request import Origin
from mlx_manager.mlx_server.api.session import session_of
from mlx_manager.mlx_server.state import ServerState

# Coroutines, though nothing in them waits: FastAPI runs plain functions in a thread, and a hop costs more than they do.


async def _state(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state


async def _origin(request: Request) -> Origin:
    return Origin(
        request_id=request.state.request_id,
        endpoint=request.url.path,
        client_address=request.client.host if request.client else None,
        session=session_of(request.headers),
    )


CurrentState = Annotated[ServerState, Depends(_state)]
CurrentOrigin = Annotated[Origin, Depends(_origin)]
