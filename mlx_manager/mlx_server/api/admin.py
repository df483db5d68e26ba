"""`/admin`: which models are in memory and what for, and the requests that are worked on. Load, unload, pin, cancel."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Depends, Request

from mlx_manager.chat.events import Timeline
from mlx_manager.errors import AdminForbidden, RequestNotFound
from mlx_manager.mlx_server.api.admin_schemas import (
    BatchSpeed,
    Memory,
    ModelName,
    ModelsReport,
    ModelState,
    RequestsReport,
    RequestState,
)
from mlx_manager.mlx_server.api.callers import has_key, host_name, is_local, is_loopback
from mlx_manager.mlx_server.api.cards import Cards, cards_of
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.generation.running import RunningRequest
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.pool.ledger import held_bytes
from mlx_manager.mlx_server.pool.pool import ModelPool
from mlx_manager.mlx_server.state import ServerState
from mlx_manager.mlx_server.workers.process import EngineProcess
from mlx_manager.observability.load_span import load_traced


async def _check_administrator(request: Request, state: CurrentState) -> None:
    """Raise AdminForbidden unless the caller has the key, or is on this machine and calls it by its own name.

    By a name of its own a page on the Internet could reach this machine, too, through the browser of somebody on it.
    """
    settings = state.settings
    if request.app.state.guards_admin or has_key(request, settings.admin_key):
        return
    name = host_name(request.headers.get("host", ""))
    if is_local(request) and (is_loopback(name) or name == settings.host.lower()):
        return
    raise AdminForbidden(
        "Administration is for this machine, under the name localhost or its address, and for others with the key: set "
        "MLX_SERVER_ADMIN_KEY and send it as Authorization: Bearer KEY."
    )


router = APIRouter(prefix="/admin", tags=["Admin"], dependencies=[Depends(_check_administrator)])


@router.get("/models")
async def list_models(state: CurrentState) -> ModelsReport:
    """List all models with their states, what memory is set aside for them and what they hold, and the budget."""
    models = await asyncio.to_thread(state.pool.catalog.list)
    listed = {files.id: files for files in models}
    # One that was asked for by an id that the catalog doesn't list (any model with any adapter) is in memory, too.
    listed |= {resident.files.id: resident.files for resident in state.pool.residents}
    cards = await cards_of(state)
    return ModelsReport(
        memory=_memory(state.pool),
        models=[model_state(state.pool, files, cards) for files in listed.values()],
    )


@router.post("/models/load")
async def load_model(body: ModelName, state: CurrentState) -> ModelState:
    """Bring a model into memory, and answer when it is there."""
    timeline = Timeline()
    with load_traced(timeline):
        await state.load_model(body.model, timeline)
    return await _described(state, body.model)


@router.post("/models/unload")
async def unload_model(body: ModelName, state: CurrentState) -> ModelState:
    """End a model's engine process, and answer when it has gone; 409 while the model works on requests."""
    files = await state.pool.find(body.model)
    await state.pool.unload(files.id)
    return model_state(state.pool, files, await cards_of(state))


@router.post("/models/pin")
async def pin_model(body: ModelName, state: CurrentState) -> ModelState:
    """Let a model stay in memory once it is there, until the server ends: it makes no room for others, and may idle.

    `pinned` in the model's settings holds for each start.
    """
    state.pool.pin(await state.pool.find(body.model))
    return await _described(state, body.model)


@router.post("/models/unpin")
async def unpin_model(body: ModelName, state: CurrentState) -> ModelState:
    """Take a model's pin away, until the server ends."""
    state.pool.pin(await state.pool.find(body.model), is_pinned=False)
    return await _described(state, body.model)


@router.get("/requests")
async def list_requests(state: CurrentState) -> RequestsReport:
    """List the requests that are worked on, the oldest first, with how far each is."""
    return RequestsReport(requests=[_request_state(one) for one in state.running])


@router.delete("/requests/{request_id}")
async def cancel_request(request_id: str, state: CurrentState) -> RequestsReport:
    """Cancel a request that is worked on; its client is told. Returns it, as far as it had come."""
    cancelled = [_request_state(one) for one in state.running.cancel(request_id)]
    if not cancelled:
        raise RequestNotFound(
            f"No request with the id {request_id!r} is worked on. GET /admin/requests lists those that are."
        )
    return RequestsReport(requests=cancelled)


async def _described(state: ServerState, name: str) -> ModelState:
    return model_state(state.pool, await state.pool.find(name), await cards_of(state))


def model_state(pool: ModelPool, files: ModelFiles, cards: Cards) -> ModelState:
    """Return what is known of a model, in memory or not."""
    resident = pool.resident(files.id)
    known = ModelState(
        id=files.id,
        kind=files.kind,
        source=files.source,
        is_demonstration=files.is_demonstration,
        adapter=files.adapter.name if files.adapter else None,
        kv_bits=files.settings.kv_bits,
        aliases=[alias for alias, target in pool.catalog.aliases.items() if target == files.id],
        state="unloaded" if resident is None else resident.state,
        pinned=pool.is_pinned(files),
        pin_source="by_hand" if pool.is_pin_by_hand(files) else "settings",
        capability_card=cards.of(files),
    )
    if resident is None:
        return known
    loading = resident.loading if resident.state == "loading" else None
    return known.model_copy(
        update={
            "requests": resident.leases,
            "idle_s": None if resident.leases else time.monotonic() - resident.used_s,
            "engine_restarts": resident.restarts,
            "loaded_share": loading.share if loading else None,
            "committed_bytes": resident.committed_bytes,
            "reserved_bytes": dict(resident.reservation.entries),
            "held_bytes": dict(held_bytes(resident.engine)),
            "batch": _batch(resident.engine),
        }
    )


def _batch(engine: EngineProcess | None) -> list[BatchSpeed]:
    """Return how fast an engine has been, by how many rows it decoded; nothing of one that is no more."""
    if engine is None or not engine.is_alive or engine.vitals is None:
        return []
    return [
        BatchSpeed(
            rows=point.rows,
            step_ms=point.step_ns / 1e6,
            tokens_per_s=point.rows * 1e9 / max(point.step_ns, 1),
        )
        for point in engine.vitals.batch_curve
    ]


def _memory(pool: ModelPool) -> Memory:
    budget, committed = pool.ledger.budget_bytes, pool.committed_bytes
    return Memory(
        budget_bytes=budget, committed_bytes=committed, free_bytes=max(budget - committed, 0)
    )


def _request_state(request: RunningRequest) -> RequestState:
    return RequestState(
        id=request.origin.request_id,
        model=request.model,
        operation=request.operation,
        endpoint=request.origin.endpoint,
        key_id=request.origin.key_id,
        phase=request.phase,
        running_s=max(time.time_ns() - request.began_ns, 0) / 1e9,
        prompt_tokens=request.timeline.prompt_tokens,
        output_tokens=request.output_tokens,
    )
