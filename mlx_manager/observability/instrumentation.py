"""Spans of the libraries: requests in (FastAPI), requests out (httpx), queries (SQLAlchemy)."""

from __future__ import annotations

import httpx
import logfire
from fastapi import FastAPI
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from mlx_manager.observability import sql_spans
from mlx_manager.observability.server_spans import ServerSpanMiddleware, is_excluded


def instrument_fastapi(app: FastAPI) -> None:
    """Give each request of `app` one server span, from its arrival to the last byte of its answer.

    FastAPI's own tracing makes it; what is switched off here is the rest: its logs carry exception texts, its
    operation spans name every dependency. Call it before the first request; a second call changes nothing.
    """
    # `FastAPI(telemetry=...)` is the public way, but takes the choice out of this module. The dictionary is read at
    # each request.
    telemetry = app._telemetry
    if telemetry["exclude"] is is_excluded:
        return
    telemetry.update(
        {
            "tracing": True,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "exclude": is_excluded,
        }
    )
    app.add_middleware(ServerSpanMiddleware)


def instrument_httpx(client: httpx.Client | httpx.AsyncClient | None = None) -> None:
    """Trace outgoing requests and send `traceparent` with them: of all clients, or of one.

    All clients means all that use a network transport, made before or after; one with a transport of its own
    (`ASGITransport`) has to be handed in.
    """
    is_global = HTTPXClientInstrumentor().is_instrumented_by_opentelemetry
    if client is None:
        if not is_global:
            logfire.instrument_httpx()
    elif not (is_global and _has_network_transport(client)):
        logfire.instrument_httpx(client)


def instrument_sqlalchemy(engine: AsyncEngine | Engine) -> None:
    """Trace the queries of `engine`: the statement with its placeholders, never the values. Once is enough."""
    sql_spans.trace_queries(engine.sync_engine if isinstance(engine, AsyncEngine) else engine)


def _has_network_transport(client: httpx.Client | httpx.AsyncClient) -> bool:
    return isinstance(client._transport, (httpx.HTTPTransport, httpx.AsyncHTTPTransport))
