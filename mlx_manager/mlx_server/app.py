"""Compose the inference server from settings. The manager includes the same routes and state in its own app."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from fastapi import FastAPI

from mlx_manager import __version__
from mlx_manager.mlx_server.api import (
    admin,
    completions,
    embeddings,
    health,
    messages,
    metrics,
    models,
    responses,
    tokens,
)
from mlx_manager.mlx_server.api.description import describe
from mlx_manager.mlx_server.api.errors import (
    error_response,
    failure_response,
    install_error_handlers,
)
from mlx_manager.mlx_server.config import Settings
from mlx_manager.mlx_server.middleware.access_log import (
    AccessLogMiddleware,
    strip_queries_from_uvicorn,
)
from mlx_manager.mlx_server.middleware.api_key import ApiKeyMiddleware, ApiKeys
from mlx_manager.mlx_server.middleware.audit import AuditMiddleware
from mlx_manager.mlx_server.middleware.body_limit import BodyLimitMiddleware
from mlx_manager.mlx_server.middleware.failure import FailureMiddleware
from mlx_manager.mlx_server.middleware.request_id import RequestIdMiddleware
from mlx_manager.mlx_server.observability.logfire_config import instrument_fastapi
from mlx_manager.mlx_server.state import open_state
from mlx_manager.observability.context import current_trace_id, tag_request
from mlx_manager.traces import otlp_api

Beside = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def _nothing_more(_app: FastAPI) -> AbstractAsyncContextManager[None]:
    return nullcontext()


def create_app(settings: Settings) -> FastAPI:
    """Return the inference server as an application of its own."""
    app = server_app("MLX Server", settings)
    instrument_fastapi(app)
    return app


def server_app(title: str, settings: Settings, beside: Beside = _nothing_more) -> FastAPI:
    """Return an application with the server's state, routes, error answers, access log and request ids.

    The manager adds its own routes to it, and with `beside` what lives as long as the server's state. Tracing is left
    to whoever composes it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_state(settings) as state:
            app.state.server = state
            async with beside(app):
                yield

    app = FastAPI(
        title=title,
        version=__version__,
        lifespan=lifespan,
        # Their pages load scripts from a content delivery network; the description itself stays.
        docs_url=None,
        redoc_url=None,
    )
    # In the order in which a path is looked for: what is asked for most comes first.
    openai = (completions, responses, embeddings, tokens)
    for module in (*openai, messages, models, health, metrics, admin, otlp_api):
        app.include_router(module.router)
    app.state.guards_admin = False
    describe(app)
    install_error_handlers(app)
    _install_middleware(app, settings)
    return app


def _install_middleware(app: FastAPI, settings: Settings) -> None:
    """Wrap the routes; the last one added is the outermost."""
    strip_queries_from_uvicorn()
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    app.add_middleware(FailureMiddleware, to_response=failure_response)
    keys = ApiKeys(settings.api_keys)
    app.add_middleware(ApiKeyMiddleware, keys=keys, to_response=error_response)
    app.add_middleware(AuditMiddleware, trace_id=current_trace_id, keys=keys)
    app.add_middleware(AccessLogMiddleware)
    app.add_middleware(RequestIdMiddleware, trace_id=current_trace_id, tag=tag_request)
