"""`GET /api/events`: what changes on the server, as server-sent events for the pages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

import logfire
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response, StreamingResponse

from mlx_manager.mlx_server.pool.draining import on_stop
from mlx_manager.mlx_server.pool.pool import ModelPool, Resident
from mlx_manager.mlx_server.state import ServerState
from mlx_manager.traces.summary import TraceFilter
from mlx_manager.web.live import Live, ModelNow, Snapshot
from mlx_manager.web.requests import newest_request

router = APIRouter(prefix="/api", tags=["Manager"])


@router.get(
    "/events", response_class=Response, responses={200: {"content": {"text/event-stream": {}}}}
)
async def follow_events(request: Request) -> StreamingResponse:
    """Stream `snapshot` events: health, models in memory, requests in progress, the newest trace and request."""
    live: Live = request.app.state.live
    return StreamingResponse(
        _frames(live), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


@asynccontextmanager
async def live_updates(app: FastAPI) -> AsyncIterator[None]:
    """Offer live updates of the server in `app.state` until it is told to stop."""
    live = Live(lambda: look(app.state.server))
    app.state.live = live
    with on_stop(live.close):
        try:
            yield
        finally:
            live.close()


async def look(state: ServerState) -> Snapshot:
    """See what the server is doing now, without leaving a span."""
    residents = state.pool.residents
    with logfire.suppress_instrumentation():
        return Snapshot(
            is_healthy=all(resident.is_healthy for resident in residents),
            models=tuple(_model_now(resident, state.pool) for resident in residents),
            newest_trace=await asyncio.to_thread(_newest_trace, state),
            newest_request=await newest_request(state.database),
            committed_bytes=state.pool.committed_bytes,
        )


def _model_now(resident: Resident, pool: ModelPool) -> ModelNow:
    engine, loading = resident.engine, resident.loading
    vitals = engine.vitals if engine else None
    return ModelNow(
        id=resident.files.id,
        state=resident.state,
        active=engine.active_sequences if engine else 0,
        waiting=vitals.waiting if vitals else 0,
        memory_bytes=vitals.active_bytes + vitals.pooled_bytes if vitals else None,
        kv_bytes=vitals.kv_bytes if vitals else None,
        loaded_share=loading.share if loading and resident.state == "loading" else None,
        is_pinned=pool.is_pinned(resident.files),
    )


def _newest_trace(state: ServerState) -> str | None:
    if state.traces is None:
        return None
    traces = state.traces.list_traces(TraceFilter(), limit=1).traces
    return f"{traces[0].trace_id}:{traces[0].span_count}" if traces else None


async def _frames(live: Live) -> AsyncIterator[str]:
    # The browser's own wait before it connects again is three to five seconds.
    yield "retry: 1000\n\n"
    async for snapshot in live.follow():
        if snapshot is None:
            yield ": still here\n\n"
        else:
            yield f"event: snapshot\ndata: {json.dumps(_sums(snapshot) | asdict(snapshot))}\n\n"
    yield "event: end\ndata: {}\n\n"


def _sums(snapshot: Snapshot) -> dict[str, int]:
    return {name: getattr(snapshot, name) for name in ("active", "waiting", "memory_bytes")}
