"""`GET /health`: whether a chat would be answered."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from mlx_manager import __version__
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.pool.pool import Resident
from mlx_manager.mlx_server.state import ServerState

router = APIRouter(tags=["Health"])


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def get_health(state: CurrentState) -> JSONResponse:
    """Say `ok`, or 503 and `unhealthy` while a loaded model's engine is dead or stalled."""
    return health_response(state)


def health_response(state: ServerState) -> JSONResponse:
    """Return the state of the server and of each model in memory, with the status that goes with it."""
    residents = state.pool.residents
    is_healthy = all(resident.is_healthy for resident in residents)
    report = {
        "status": "ok" if is_healthy else "unhealthy",
        "version": __version__,
        "models": [_described(resident) for resident in residents],
    }
    return JSONResponse(report, status_code=200 if is_healthy else 503)


def _described(resident: Resident) -> dict[str, Any]:
    engine = resident.engine
    return {
        "id": resident.files.id,
        "state": resident.state,
        "active_requests": engine.active_sequences if engine else 0,
        "engine_restarts": resident.restarts,
        "waiting_for_engine": resident.recovery.waiting,
        "circuit": resident.circuit,
    }
