"""The span of one request for embeddings, with its phases and what it is measured by. See `chat_span`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from mlx_manager.chat.embeddings import EmbeddingRequest, Embeddings
from mlx_manager.chat.events import Timeline, TraceContext
from mlx_manager.errors import MlxManagerError
from mlx_manager.observability import attributes as names
from mlx_manager.observability.afterwards import Later
from mlx_manager.observability.finished_spans import FinishedSpan, SpanWriter
from mlx_manager.observability.metrics import ChatMetrics, Measured, Tokens
from mlx_manager.observability.phases import (
    Attributes,
    between_s,
    known,
    phase_span,
    phases_until_admitted,
    resume_spans,
    resumes,
    seconds,
    taken_at,
)


class EmbeddingSpan:
    """Is there while the work is done; `end` has all written down."""

    def __init__(
        self,
        tracer: Tracer,
        writer: SpanWriter,
        request: EmbeddingRequest,
        provider: str,
        backend: str,
    ) -> None:
        self._writer = writer
        self._request = request
        self._provider = provider
        self._backend = backend
        self._arrived_ns = time.time_ns()
        self._answer: Embeddings | None = None
        self._error_type: str | None = None
        self._is_cancelled = False
        self.span = tracer.start_span(
            names.chat_span_name(request.operation, request.model),
            kind=SpanKind.INTERNAL,
            start_time=self._arrived_ns,
            record_exception=False,
            set_status_on_exception=False,
        )

    @property
    def trace(self) -> TraceContext:
        """The span as a value, for the request to carry."""
        context = self.span.get_span_context()
        return TraceContext(context.trace_id, context.span_id, context.trace_flags)

    def complete(self, answer: Embeddings) -> None:
        """All vectors are there."""
        self._answer = answer

    def cancel(self) -> None:
        """The client went away."""
        self._is_cancelled = True

    def fail(self, error: BaseException) -> None:
        """Keep what kind of failure it was; its text may quote the request and stays out."""
        if isinstance(error, MlxManagerError):
            self._error_type = error.code
        else:
            self._error_type = type(error).__qualname__

    def end(self, metrics: ChatMetrics, later: Later) -> None:
        """The work is over now. Attributes, phases and metrics are written `later`."""
        later(partial(self._close, metrics, time.time_ns()))

    def _close(self, metrics: ChatMetrics, ended_ns: int) -> None:
        if self.span.is_recording():
            self._write(ended_ns)
        self._measure(metrics, ended_ns)
        self.span.end(ended_ns)

    def _write(self, ended_ns: int) -> None:
        self.span.set_attributes(self._asked() | self._outcome())
        if self._error_type:
            self.span.set_status(StatusCode.ERROR)
        reached = list(phases(self._request.timeline, ended_ns))
        if reached and self._error_type:
            reached[-1] = reached[-1]._replace(error_type=self._error_type)
        for one in reached:
            self._writer.write(self.span, one)

    def _asked(self) -> Attributes:
        request, written_as = self._request, self._request.encoding_format
        return known(
            {
                names.OPERATION_NAME: request.operation,
                names.PROVIDER_NAME: self._provider,
                names.BACKEND: self._backend,
                names.REQUEST_ID: request.origin.request_id,
                names.CONVERSATION_ID: request.origin.session,
                names.KEY_ID: request.origin.key_id,
                **taken_at(request.origin),
                names.REQUEST_MODEL: request.model,
                names.REQUEST_ENCODING_FORMATS: (written_as,) if written_as else None,
                names.REQUEST_INPUTS: len(request.inputs),
            }
        )

    def _outcome(self) -> Attributes:
        answer, timeline = self._answer, self._request.timeline
        dimensions = answer.dimensions if answer else self._request.dimensions
        return known(
            {
                names.RESPONSE_MODEL: answer.model if answer else None,
                names.DIMENSION_COUNT: dimensions,
                names.INPUT_TOKENS: answer.input_tokens if answer else None,
                names.ERROR_TYPE: self._error_type,
                names.CANCELLED: self._is_cancelled or None,
                names.QUEUE_S: between_s(timeline.queued_ns, timeline.admitted_ns),
                names.MODEL_REVISION: timeline.route.revision if timeline.route else None,
                names.QUANTIZATION: timeline.quantization,
                names.ENGINE_RESTARTS: timeline.engine_restarts,
                names.RESUMES: resumes(timeline),
            }
        )

    def _measure(self, metrics: ChatMetrics, ended_ns: int) -> None:
        context, dimensions = trace.set_span_in_context(self.span), self._dimensions()
        if self._answer is not None:
            metrics.used(Tokens(self._answer.input_tokens, 0, 0), dimensions, context)
        if self._is_cancelled:
            metrics.cancelled(dimensions, context)
        else:
            duration_s = seconds(self._arrived_ns, ended_ns)
            metrics.completed(Measured(duration_s, None, None), dimensions, context)

    def _dimensions(self) -> Attributes:
        """What the numbers can be split by: a model only once it is known to exist, never an id."""
        route = self._request.timeline.route
        found: dict[str, AttributeValue | None] = {
            names.OPERATION_NAME: self._request.operation,
            names.PROVIDER_NAME: self._provider,
            names.HTTP_ROUTE: self._request.origin.endpoint,
            names.REQUEST_MODEL: self._request.model if route else None,
            names.RESPONSE_MODEL: route.model if route else None,
            names.ERROR_TYPE: self._error_type,
        }
        return known(found)


def phases(timeline: Timeline, ended_ns: int) -> Iterator[FinishedSpan]:
    """The phases that were reached, as those of a chat; the engine's work is one."""
    yield from phases_until_admitted(timeline, ended_ns)
    mean = timeline.batch_width_sum / timeline.batches if timeline.batches else None
    computed: dict[str, AttributeValue | None] = {
        names.COMPUTE_TOKENS: timeline.prompt_tokens,
        names.COMPUTE_BATCHES: timeline.batches or None,
        names.BATCH_WIDTH_MEAN: mean,
        names.BATCH_WIDTH_MAX: timeline.batch_width_max or None,
    }
    yield from resume_spans(timeline, ended_ns, is_over=True)
    yield from phase_span(
        names.SPAN_COMPUTE,
        timeline.admitted_ns,
        timeline.finished_ns,
        ended_ns,
        known(computed),
    )
    yield from resume_spans(timeline, ended_ns, is_over=False)
