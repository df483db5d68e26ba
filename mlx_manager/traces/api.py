"""`/api/traces`: the kept traces as JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from mlx_manager.errors import TraceNotFound, TracesUnavailable
from mlx_manager.observability.otlp_json import to_otlp_json
from mlx_manager.traces.schemas import (
    LAST_NS,
    NS_PER_S,
    GaugesBody,
    StatsBody,
    StatsQuery,
    TraceBody,
    TraceListBody,
    TraceQuery,
    to_ns,
)
from mlx_manager.traces.store import TraceStore
from mlx_manager.traces.summary import Trace

DAY_NS = 86_400 * NS_PER_S
JSON_MEDIA_TYPE = "application/json"

router = APIRouter(prefix="/api/traces", tags=["Traces"])


async def current_store(request: Request) -> TraceStore:
    """The store that the server keeps. Raises TracesUnavailable when it keeps none."""
    store: TraceStore | None = request.app.state.server.traces
    if store is None:
        raise TracesUnavailable(
            "No traces are kept: MLX_SERVER_TRACES is off, or the file could not be opened; then the server's log says"
            " why."
        )
    return store


CurrentStore = Annotated[TraceStore, Depends(current_store)]


@router.get("", response_model=TraceListBody)
async def list_traces(query: Annotated[TraceQuery, Query()], store: CurrentStore) -> Response:
    """List traces in a line each, newest first, by model, status, duration, tokens, session, key, time or text."""
    return await _answer(
        lambda: store.list_traces(query.to_filter(), query.limit, query.cursor), TraceListBody
    )


@router.get("/stats", response_model=StatsBody)
async def get_stats(query: Annotated[StatsQuery, Query()], store: CurrentStore) -> Response:
    """Say requests, tokens and percentiles over a time: by model, and in columns for a chart."""
    since_ns, until_ns = _time_of(query)
    return await _answer(
        lambda: store.stats(since_ns, until_ns, query.model, query.buckets), StatsBody
    )


@router.get("/gauges", response_model=GaugesBody)
async def get_gauges(query: Annotated[StatsQuery, Query()], store: CurrentStore) -> Response:
    """Say how long queues, how wide batches and how full memory were over a time, in columns for a chart."""
    since_ns, until_ns = _time_of(query)
    return await _answer(
        lambda: store.gauges(since_ns, until_ns, query.model, query.buckets), GaugesBody
    )


@router.get("/{trace_id}", response_model=TraceBody)
async def get_trace(trace_id: str, store: CurrentStore) -> Response:
    """Return one trace with all its spans."""
    return await _answer(lambda: _found(store, trace_id), TraceBody)


@router.get("/{trace_id}/otlp", response_model=dict[str, Any])
async def export_trace(trace_id: str, store: CurrentStore) -> Response:
    """Return one trace as OTLP JSON, for any other OpenTelemetry tool."""

    def export() -> bytes:
        return to_otlp_json(_found(store, trace_id).spans)

    headers = {"Content-Disposition": f'attachment; filename="trace-{trace_id[:32]}.json"'}
    return Response(await asyncio.to_thread(export), headers=headers, media_type=JSON_MEDIA_TYPE)


def _time_of(query: StatsQuery) -> tuple[int, int]:
    """From when, until when, in nanoseconds: a day up to now, unless something else was asked."""
    until_ns = to_ns(query.until) if query.until else min(time.time_ns(), LAST_NS)
    return to_ns(query.since) if query.since else max(until_ns - DAY_NS, 0), until_ns


def _found(store: TraceStore, trace_id: str) -> Trace:
    trace = store.get_trace(trace_id)
    if trace is None:
        raise TraceNotFound(
            f"There is no trace {trace_id[:64]}. It may have been too old to keep; GET /api/traces lists them."
        )
    return trace


async def _answer(ask: Callable[[], object], body: type[BaseModel]) -> Response:
    """Ask the store and write the answer down on a thread: both take longer than the event loop has time."""

    def answer() -> str:
        return body.model_validate(ask()).model_dump_json()

    return Response(await asyncio.to_thread(answer), media_type=JSON_MEDIA_TYPE)
