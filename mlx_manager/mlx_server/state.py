"""What lives as long as the server: built in the lifespan, reached by routes through `Depends`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from huggingface_hub import constants as hub

from mlx_manager import starter
from mlx_manager.chat.backend import ChatBackend, EmbeddingBackend, TokenCounter, Tokenizing
from mlx_manager.chat.events import Timeline
from mlx_manager.database import Database, open_database, upgrade
from mlx_manager.mlx_server.audit.audited import AuditedBackend, AuditedEmbeddings
from mlx_manager.mlx_server.audit.log import AuditLog
from mlx_manager.mlx_server.config import Settings
from mlx_manager.mlx_server.generation.embedding import LocalEmbeddings
from mlx_manager.mlx_server.generation.local import LocalBackend
from mlx_manager.mlx_server.generation.running import RunningRequests
from mlx_manager.mlx_server.generation.tokenizing import LocalTokenizing
from mlx_manager.mlx_server.observability.engine_metrics import EngineMetrics, engine_figures
from mlx_manager.mlx_server.observability.gauge_samples import sampling
from mlx_manager.mlx_server.observability.logfire_config import instrument_sqlalchemy
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.mlx_server.pool.draining import draining
from mlx_manager.mlx_server.pool.fit import predict
from mlx_manager.mlx_server.pool.ledger import Ledger, Reservation
from mlx_manager.mlx_server.pool.lm_studio import models_folder
from mlx_manager.mlx_server.pool.memory import computes_in_float32, default_budget_bytes
from mlx_manager.mlx_server.pool.pool import ModelPool, Survival, shutting_down
from mlx_manager.mlx_server.responses.archive import ResponseArchive
from mlx_manager.mlx_server.responses.background import BackgroundResponses
from mlx_manager.mlx_server.time_limits.limits import TimeLimits
from mlx_manager.mlx_server.workers.blas import find_openblas
from mlx_manager.mlx_server.workers.options import PrefixDiskOptions
from mlx_manager.mlx_server.workers.process import EngineOptions, EngineProcess
from mlx_manager.mlx_server.workers.watch import EngineWatch
from mlx_manager.observability.afterwards import Afterwards
from mlx_manager.observability.content import recording_content
from mlx_manager.observability.instrumented import InstrumentedBackend
from mlx_manager.observability.instrumented_embeddings import InstrumentedEmbeddings
from mlx_manager.observability.known_secrets import kept_out
from mlx_manager.observability.observed import dropped
from mlx_manager.observability.setup import flush, hurry, metric_source
from mlx_manager.traces.recording import recording
from mlx_manager.traces.store import StoreOptions, TraceStore
from mlx_manager.wire.signature import Signer

SIGNATURE_KEY_BYTES = 32
STARTER_ID = "mlx-manager/starter"
STARTER_PATH = Path(starter.__file__).parent


@dataclass(frozen=True, slots=True)
class ServerState:
    """The parts that routes call."""

    settings: Settings
    database: Database
    pool: ModelPool
    backend: ChatBackend
    embeddings: EmbeddingBackend
    audit: AuditLog
    time_limits: TimeLimits
    afterwards: Afterwards
    traces: TraceStore | None
    token_counter: TokenCounter
    tokenizing: Tokenizing
    signer: Signer
    responses: ResponseArchive
    background: BackgroundResponses
    running: RunningRequests
    load_model: Callable[[str, Timeline], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Books:
    """What is written down of requests, and who writes it when they are over."""

    database: Database
    audit: AuditLog
    traces: TraceStore | None
    afterwards: Afterwards


@asynccontextmanager
async def open_state(settings: Settings) -> AsyncIterator[ServerState]:
    """Open the database, the audit log and the pool, and close them again in the opposite order."""
    async with AsyncExitStack() as stack:
        stack.enter_context(kept_out(settings.secrets))
        # After the process's lifespan uvicorn may leave without exit handlers: what isn't sent by then is lost.
        stack.push_async_callback(asyncio.to_thread, flush)
        books = await _open_books(settings, stack)
        running = RunningRequests()
        pool = _open_pool(settings, running, stack)
        if books.traces is not None:
            await stack.enter_async_context(sampling(pool, books.traces.put_sample))
        limits = TimeLimits(books.database, settings.time_limits_s, settings.time_limits_set)
        await limits.load()
        local = LocalBackend(pool, limits, settings.key_priorities, running)
        embeddings = LocalEmbeddings(pool, limits, running)
        load_model = _loader(pool, local, embeddings)
        for model_id in settings.preload:
            await load_model(model_id)
        responses, background = await _open_responses(settings, books.database, stack)
        # The first of all at the end: those who take no telemetry are found out while engines stop.
        stack.callback(hurry)
        yield ServerState(
            settings,
            books.database,
            pool,
            _observed_chats(local, books, settings),
            _observed_embeddings(embeddings, books),
            books.audit,
            limits,
            books.afterwards,
            books.traces,
            local,
            LocalTokenizing(pool, limits, {"chat": local.text, "embeddings": embeddings.text}),
            Signer(secrets.token_bytes(SIGNATURE_KEY_BYTES)),
            responses,
            background,
            running,
            load_model,
        )


async def _open_books(settings: Settings, stack: AsyncExitStack) -> Books:
    """Open them before the pool, so that they close after it: what the last requests did is kept, too."""
    afterwards = Afterwards()
    traces = await _keep_traces(settings, stack)
    database = await open_database(settings.database_url)
    stack.push_async_callback(database.close)
    instrument_sqlalchemy(database.engine)
    await upgrade(database)
    audit = AuditLog(database, retention_days=settings.audit_retention_days)
    await stack.enter_async_context(audit)
    stack.enter_context(metric_source(dropped(lambda: {"audit": audit.lost})))
    stack.callback(afterwards.drain)
    return Books(database, audit, traces, afterwards)


def _open_pool(settings: Settings, running: RunningRequests, stack: AsyncExitStack) -> ModelPool:
    pool = make_pool(settings, EngineMetrics())

    def end_requests() -> None:
        pool.end_requests()
        running.end(shutting_down())

    stack.push_async_callback(pool.close)
    stack.enter_context(draining(settings.shutdown_timeout_s, end_requests))
    stack.enter_context(metric_source(lambda: engine_figures(pool)))
    return pool


async def _open_responses(
    settings: Settings, database: Database, stack: AsyncExitStack
) -> tuple[ResponseArchive, BackgroundResponses]:
    responses = ResponseArchive(
        database,
        retention_days=settings.responses_retention_days,
        max_bytes=settings.responses_max_bytes,
    )
    await stack.enter_async_context(responses)
    background = BackgroundResponses(responses)
    stack.push_async_callback(background.close, settings.shutdown_timeout_s)
    return responses, background


def _observed_chats(local: LocalBackend, books: Books, settings: Settings) -> ChatBackend:
    """Return the backend with its books kept: who sees a request last is who began its span."""
    audited = AuditedBackend(local, books.audit.entry_of, name="local")
    recorded = recording_content(audited, settings.capture_content, settings.key_capture_content)
    return InstrumentedBackend(recorded, later=books.afterwards.later)


def _observed_embeddings(embeddings: LocalEmbeddings, books: Books) -> EmbeddingBackend:
    audited = AuditedEmbeddings(embeddings, books.audit.entry_of, name="local")
    return InstrumentedEmbeddings(audited, later=books.afterwards.later)


def _loader(
    pool: ModelPool, local: LocalBackend, embeddings: LocalEmbeddings
) -> Callable[..., Awaitable[None]]:
    async def load_model(model_id: str, timeline: Timeline | None = None) -> None:
        files = await pool.find(model_id)
        await (embeddings if files.kind == "embeddings" else local).load(files.id, timeline)

    return load_model


async def _keep_traces(settings: Settings, stack: AsyncExitStack) -> TraceStore | None:
    if not settings.traces:
        return None
    options = StoreOptions(
        max_age_s=settings.traces_retention_days * 86_400,
        max_content_age_s=settings.content_retention_days * 86_400,
        max_bytes=settings.traces_max_bytes,
    )
    store = await stack.enter_async_context(recording(settings.traces_path, options))
    if store is not None:
        stack.enter_context(metric_source(dropped(lambda: {"store": store.dropped})))
    return store


def make_pool(settings: Settings, watch: EngineWatch) -> ModelPool:
    """Return an empty pool over the models that the settings name; `watch` is told of its engines."""
    options = engine_options(settings)
    ledger = Ledger(
        budget_bytes=memory_budget_bytes(settings),
        appraise=partial(
            predict, is_float32=computes_in_float32(), chunk_tokens=options.chunk_tokens
        ),
        prefix_cache_bytes=settings.prefix_cache_mib * 2**20,
    )

    async def start_engine(files: ModelFiles) -> EngineProcess:
        assert files.kind != "scores", "no request finds a model that nothing computes"
        resident = pool.resident(files.id)
        reserved = resident.reservation if resident else Reservation()
        own = replace(
            options,
            prefix_cache_bytes=reserved.prefix_cache_bytes if ledger.wanted_bytes(files) else None,
            shared_bytes=reserved.shared_bytes if resident else None,
            pooled_bytes=reserved.need.head_room_bytes or None,
            adapter=files.adapter.path if files.adapter else None,
            kv_bits=files.settings.kv_bits,
        )
        note = partial(pool.note_loading, files.id)
        return await EngineProcess.start(files.id, files.path, own, watch, files.kind, note)

    pool = ModelPool(
        make_catalog(settings),
        start_engine,
        settings.max_loaded_models,
        watch,
        ledger,
        settings.idle_unload_s,
        Survival(settings.max_resumes, settings.crash_pause_s),
    )
    return pool


def engine_options(settings: Settings) -> EngineOptions:
    """Return how the settings want engine processes to be run."""
    disk = PrefixDiskOptions(
        settings.prefix_disk_path,
        settings.prefix_disk_mib * 2**20,
        settings.prefix_disk_daily_mib * 2**20,
    )
    return EngineOptions(
        max_batch=settings.max_batch,
        max_waiting=settings.max_waiting,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        idle_prefill_chunk_tokens=settings.idle_prefill_chunk_tokens,
        prefix_disk=disk if disk.max_bytes else None,
        lookup_tokens=settings.lookup_tokens,
        token_gap_ms=settings.token_gap_ms,
        kv_budget_bytes=settings.kv_budget_mib and settings.kv_budget_mib * 2**20,
        load_timeout_s=settings.load_timeout_s,
        stall_timeout_s=settings.stall_timeout_s,
        blas_library=settings.blas_library or find_openblas(),
    )


def memory_budget_bytes(settings: Settings) -> int:
    """Return the bytes that all models in memory may take together."""
    budget_mib = settings.memory_budget_mib
    return default_budget_bytes() if budget_mib is None else budget_mib * 2**20


def make_catalog(settings: Settings) -> Catalog:
    """Return the catalog of the built-in model, the configured folders, the Hugging Face cache and LM Studio's."""
    hub_cache = settings.hub_cache or Path(hub.HF_HUB_CACHE)
    lm_studio = settings.lm_studio_dir or models_folder(Path.home())
    return Catalog(
        {STARTER_ID: STARTER_PATH},
        settings.model_dirs,
        hub_cache,
        settings.models,
        settings.adapter_dirs,
        lm_studio,
    )
