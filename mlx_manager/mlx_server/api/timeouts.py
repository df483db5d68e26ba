"""`GET` and `PUT /api/settings/timeouts`: how long a request may take, changed while the server runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from mlx_manager.chat.request import Operation
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.time_limits.limits import Source, TimeLimits

LONGEST_S = 86_400
Seconds = Annotated[float, Field(gt=0, le=LONGEST_S, strict=True, allow_inf_nan=False)]
OPERATIONS: dict[str, Operation] = {
    "chat_s": "chat",
    "completions_s": "text_completion",
    "embeddings_s": "embeddings",
}

router = APIRouter(prefix="/api/settings/timeouts", tags=["Settings"])


class TimeoutsBody(BaseModel):
    """Seconds from arrival to last byte. What is left out stays; null goes back to the environment's value."""

    model_config = ConfigDict(extra="forbid")

    chat_s: Seconds | None = None
    completions_s: Seconds | None = None
    embeddings_s: Seconds | None = None


class Sources(BaseModel):
    """Where each limit comes from: stored by a change, set in the environment, or built in."""

    chat_s: Source
    completions_s: Source
    embeddings_s: Source


class Timeouts(BaseModel):
    """The limits that hold for the next request, in seconds."""

    chat_s: float
    completions_s: float
    embeddings_s: float
    source: Sources


@router.get("")
async def get_timeouts(state: CurrentState) -> Timeouts:
    """Say how many seconds a request to each endpoint may take, and where that limit comes from."""
    return _described(state.time_limits)


@router.put("")
async def put_timeouts(body: TimeoutsBody, state: CurrentState) -> Timeouts:
    """Change the limits: for the next request, and stored, so that they survive a restart."""
    changes = {OPERATIONS[field]: getattr(body, field) for field in body.model_fields_set}
    await state.time_limits.change(changes)
    return _described(state.time_limits)


def _described(limits: TimeLimits) -> Timeouts:
    seconds = {field: limits[operation] for field, operation in OPERATIONS.items()}
    source = {field: limits.source(operation) for field, operation in OPERATIONS.items()}
    return Timeouts.model_validate({**seconds, "source": source})
