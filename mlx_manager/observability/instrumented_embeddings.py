"""`InstrumentedEmbeddings`: one span per request for embeddings, its phases after the fact, its metrics at the end."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from opentelemetry import trace
from opentelemetry.trace import Tracer

from mlx_manager.chat.backend import EmbeddingBackend
from mlx_manager.chat.embeddings import EmbeddingRequest, Embeddings
from mlx_manager.observability.afterwards import Later, at_once
from mlx_manager.observability.embedding_span import EmbeddingSpan
from mlx_manager.observability.finished_spans import TracerWriter
from mlx_manager.observability.instruments import SCOPE
from mlx_manager.observability.metrics import ChatMetrics
from mlx_manager.observability.setup import span_writer


class InstrumentedEmbeddings:
    """Watches another backend; see `InstrumentedBackend`."""

    def __init__(
        self,
        backend: EmbeddingBackend,
        *,
        provider: str = "mlx",
        name: str = "local",
        tracer: Tracer | None = None,
        metrics: ChatMetrics | None = None,
        later: Later = at_once,
    ) -> None:
        self._backend = backend
        self._provider = provider
        self._name = name
        self._tracer = tracer or trace.get_tracer(SCOPE)
        self._writer = TracerWriter(tracer) if tracer else span_writer()
        self._metrics = metrics or ChatMetrics()
        self._later = later

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Answer `request`, in a span below the one that is current."""
        span = EmbeddingSpan(self._tracer, self._writer, request, self._provider, self._name)
        try:
            with trace.use_span(span.span, record_exception=False, set_status_on_exception=False):
                answer = await self._backend.embed(replace(request, trace=span.trace))
            span.complete(answer)
        except asyncio.CancelledError:
            span.cancel()
            raise
        except BaseException as error:
            span.fail(error)
            raise
        finally:
            span.end(self._metrics, self._later)
        return answer
