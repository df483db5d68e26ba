"""The span of one chat, from the request's words to the phases in its `Timeline`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from mlx_manager.chat.events import (
    ChatEvent,
    Finding,
    FindingKind,
    Finished,
    Parsing,
    Stall,
    Started,
    Timeline,
    TraceContext,
)
from mlx_manager.chat.request import ChatRequest
from mlx_manager.errors import MlxManagerError
from mlx_manager.observability import attributes as names
from mlx_manager.observability.afterwards import Later
from mlx_manager.observability.finished_spans import FinishedSpan, SpanWriter
from mlx_manager.observability.metrics import ChatMetrics, Measured, Tokens
from mlx_manager.observability.phases import (
    Attributes,
    between_s,
    interval_span,
    known,
    phase_span,
    phases_until_admitted,
    resume_spans,
    resumes,
    seconds,
    taken_at,
)

FOUND: dict[FindingKind, str] = {
    "reasoning_began": names.EVENT_REASONING_BEGAN,
    "reasoning_cut": names.EVENT_REASONING_CUT,
    "reasoning_ended": names.EVENT_REASONING_ENDED,
    "tool_call_began": names.EVENT_TOOL_CALL_BEGAN,
    "tool_call_ended": names.EVENT_TOOL_CALL_ENDED,
    "tool_call_repaired": names.EVENT_TOOL_CALL_REPAIRED,
    "tool_call_malformed": names.EVENT_TOOL_CALL_MALFORMED,
    "tool_call_left_out": names.EVENT_TOOL_CALL_LEFT_OUT,
}


class ChatSpan:
    """Gathers what happened while the chat runs; `end` has it written down, once."""

    def __init__(
        self,
        tracer: Tracer,
        writer: SpanWriter,
        request: ChatRequest,
        provider: str,
        backend: str,
        parent: Context,
        arrived_ns: int,
    ) -> None:
        self._writer = writer
        self._request = request
        self._provider = provider
        self._backend = backend
        self._arrived_ns = arrived_ns
        self._first_delta_ns: int | None = None
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._error_type: str | None = None
        self._is_cancelled = False
        self._is_ended = False
        self.span = tracer.start_span(
            names.chat_span_name(request.operation, request.model),
            context=parent,
            kind=SpanKind.INTERNAL,
            start_time=arrived_ns,
            record_exception=False,
            set_status_on_exception=False,
        )

    @property
    def trace(self) -> TraceContext:
        """The span as a value, for the request to carry."""
        context = self.span.get_span_context()
        return TraceContext(context.trace_id, context.span_id, context.trace_flags)

    def note(self, event: ChatEvent) -> None:
        """Remember the first and the last event."""
        match event:
            case Started():
                self._started = event
            case Finished():
                self._finished = event
            case _:
                pass

    def first_delta(self) -> None:
        """The first piece of the answer is about to leave: text, or reasoning, or a call."""
        self._first_delta_ns = time.time_ns()

    def cancel(self) -> None:
        """The reader went away; no news when it has its answer."""
        self._is_cancelled = not self._is_ended

    def fail(self, error: BaseException) -> None:
        """Keep what kind of failure it was; its text may quote the request and stays out."""
        if self._is_ended:
            return
        if isinstance(error, MlxManagerError):
            self._error_type = error.code
        else:
            self._error_type = type(error).__qualname__

    def end(self, metrics: ChatMetrics, later: Later) -> None:
        """The chat is over now. Attributes, phases and metrics are written `later`; once."""
        if self._is_ended:
            return
        self._is_ended = True
        later(partial(self._close, metrics, time.time_ns()))

    def _close(self, metrics: ChatMetrics, ended_ns: int) -> None:
        timeline = self._started.timeline if self._started else self._request.timeline
        if self.span.is_recording():
            self._write(timeline, ended_ns)
        self._measure(metrics, timeline, ended_ns)
        self.span.end(ended_ns)

    def _write(self, timeline: Timeline, ended_ns: int) -> None:
        asked = _asked(self._request, self._provider, self._backend)
        done = self._outcome() | self._usage(timeline)
        self.span.set_attributes(asked | done | _work(timeline, self._arrived_ns))
        if self._error_type:
            self.span.set_status(StatusCode.ERROR)
        reached = list(phases(timeline, ended_ns))
        if reached and self._error_type:
            reached[-1] = reached[-1]._replace(error_type=self._error_type)
        for phase in reached:
            self._writer.write(self.span, phase)

    def _outcome(self) -> Attributes:
        found: Attributes = {}
        if self._started:
            found[names.RESPONSE_ID] = self._request.response_id
            found[names.RESPONSE_MODEL] = self._started.model
        if self._finished:
            reasons = (self._finished.reason, *self._finished.other_reasons)
            found[names.RESPONSE_FINISH_REASONS] = reasons
        if self._first_delta_ns and self._request.stream:
            found[names.TIME_TO_FIRST_CHUNK] = seconds(self._arrived_ns, self._first_delta_ns)
        if self._error_type:
            found[names.ERROR_TYPE] = self._error_type
        if self._is_cancelled:
            found[names.CANCELLED] = True
        return found

    def _usage(self, timeline: Timeline) -> Attributes:
        tokens = self._tokens(timeline)
        if tokens is None:
            return {}
        return {
            names.INPUT_TOKENS: tokens.input,
            names.OUTPUT_TOKENS: tokens.output,
            names.CACHE_READ_TOKENS: tokens.cached,
        } | self._reasoning()

    def _reasoning(self) -> Attributes:
        count = self._finished.usage.reasoning_tokens if self._finished else 0
        return {names.REASONING_TOKENS: count} if count else {}

    def _tokens(self, timeline: Timeline) -> Tokens | None:
        """What was computed, also when nobody has seen the end of it; None when the prompt was never read."""
        if self._finished:
            usage = self._finished.usage
            return Tokens(usage.input_tokens, usage.output_tokens, usage.cached_tokens)
        if timeline.first_token_ns is None:
            return None
        return Tokens(timeline.prompt_tokens, timeline.output_tokens, timeline.cached_tokens)

    def _measure(self, metrics: ChatMetrics, timeline: Timeline, ended_ns: int) -> None:
        context, dimensions = trace.set_span_in_context(self.span), self._dimensions()
        self._count(metrics, timeline, dimensions, context)
        if self._is_cancelled:
            metrics.cancelled(dimensions, context)
            return
        is_whole = self._error_type is None
        measured = Measured(
            duration_s=seconds(self._arrived_ns, ended_ns),
            time_to_first_token_s=_first_token_s(timeline, self._arrived_ns) if is_whole else None,
            time_per_output_token_s=_per_token_s(timeline) if is_whole else None,
        )
        metrics.completed(measured, dimensions, context)

    def _count(
        self, metrics: ChatMetrics, timeline: Timeline, dimensions: Attributes, context: Context
    ) -> None:
        tokens = self._tokens(timeline)
        if tokens is None:
            return
        metrics.used(tokens, dimensions, context)
        if timeline.first_token_ns is not None:
            metrics.prefilled(tokens, dimensions, context)

    def _dimensions(self) -> Attributes:
        """What the numbers can be split by: a model only once it is known to exist, never an id."""
        found: Attributes = {
            names.OPERATION_NAME: self._request.operation,
            names.PROVIDER_NAME: self._provider,
            names.HTTP_ROUTE: self._request.origin.endpoint,
        }
        if self._started:
            found[names.REQUEST_MODEL] = self._request.model
            found[names.RESPONSE_MODEL] = self._started.model
        if self._error_type:
            found[names.ERROR_TYPE] = self._error_type
        return found


def phases(timeline: Timeline, ended_ns: int) -> Iterator[FinishedSpan]:
    """The phases that were reached; one that a failure or a leaving client cut short ends with the chat.

    They follow each other, so it is the last one in which a chat has failed.
    """
    yield from phases_until_admitted(timeline, ended_ns)
    yield from phase_span(
        names.SPAN_PREFILL,
        timeline.admitted_ns,
        timeline.first_token_ns,
        ended_ns,
        _prefilled(timeline),
    )
    # Within the decoding, and before it here, because it isn't where an answer fails.
    yield from resume_spans(timeline, ended_ns, is_over=True)
    yield from _parsed(timeline, ended_ns)
    for phase in phase_span(
        names.SPAN_DECODE,
        timeline.first_token_ns,
        timeline.finished_ns,
        ended_ns,
        _decoded(timeline),
    ):
        yield phase._replace(events=tuple(map(_stalled, timeline.stalls)))
    yield from resume_spans(timeline, ended_ns, is_over=False)


def _parsed(timeline: Timeline, ended_ns: int) -> Iterator[FinishedSpan]:
    """From the first sign of reasoning or of a call to the last; without one, all of an answer held to a format."""
    held_to: Attributes = {names.PARSE_HELD_TO: timeline.held_to} if timeline.held_to else {}
    if (parsing := timeline.parsing) is not None:
        found = held_to | _counted(parsing)
        for phase in interval_span(names.SPAN_PARSE, parsing.interval, ended_ns, found):
            yield phase._replace(events=tuple(map(_found, parsing.findings)))
    elif held_to:
        yield from phase_span(
            names.SPAN_PARSE, timeline.first_token_ns, timeline.finished_ns, ended_ns, held_to
        )


def _counted(parsing: Parsing) -> Attributes:
    kinds = [finding.kind for finding in parsing.findings]
    return {
        names.PARSE_FAMILY: parsing.family,
        names.PARSE_TOOL_CALLS: kinds.count("tool_call_began"),
        names.PARSE_REPAIRS: kinds.count("tool_call_repaired"),
        names.PARSE_MALFORMED: kinds.count("tool_call_malformed"),
    }


def _found(finding: Finding) -> Event:
    detail = names.TOOL_NAME if isinstance(finding.detail, str) else names.PARSE_LEFT_OUT_CHARACTERS
    attributes = {} if finding.detail is None else {detail: finding.detail}
    return Event(FOUND[finding.kind], attributes, finding.at_ns)


def _stalled(stall: Stall) -> Event:
    attributes: Attributes = {
        names.STALL_AFTER_TOKEN: stall.after_token,
        names.STALL_DURATION_S: stall.duration_ns / 1e9,
    }
    if stall.beside_prefill:
        attributes[names.STALL_CAUSE] = names.SPAN_PREFILL
    return Event(names.EVENT_STALL, attributes, stall.start_ns)


def _asked(request: ChatRequest, provider: str, backend: str) -> Attributes:
    sampling = request.sampling
    asked: dict[str, AttributeValue | None] = {
        names.OPERATION_NAME: request.operation,
        names.PROVIDER_NAME: provider,
        names.BACKEND: backend,
        names.OUTPUT_TYPE: _output_type(request),
        names.REQUEST_ID: request.origin.request_id,
        names.CONVERSATION_ID: request.origin.session,
        names.KEY_ID: request.origin.key_id,
        **taken_at(request.origin),
        names.REQUEST_MODEL: request.model,
        names.REQUEST_STREAM: request.stream,
        names.REQUEST_CHOICE_COUNT: request.choices if request.choices > 1 else None,
        names.REQUEST_PROMPTS: len(request.each) if request.more_prompts else None,
        names.REQUEST_MAX_TOKENS: request.max_tokens,
        names.REQUEST_TEMPERATURE: sampling.temperature,
        names.REQUEST_TOP_P: sampling.top_p,
        names.REQUEST_TOP_K: sampling.top_k,
        names.REQUEST_MIN_P: sampling.min_p,
        names.REQUEST_SEED: sampling.seed,
        names.REQUEST_PRESENCE_PENALTY: sampling.presence_penalty,
        names.REQUEST_FREQUENCY_PENALTY: sampling.frequency_penalty,
        names.REQUEST_REPETITION_PENALTY: sampling.repetition_penalty,
        names.REQUEST_LOGIT_BIASES: len(sampling.logit_bias) or None,
        names.REQUEST_XTC_PROBABILITY: sampling.xtc_probability,
        names.REQUEST_XTC_THRESHOLD: sampling.xtc_threshold,
        names.REQUEST_MIN_TOKENS: sampling.min_tokens,
        names.REQUEST_IGNORE_EOS: sampling.ignore_end or None,
        names.REQUEST_TOP_LOGPROBS: sampling.top_logprobs,
        names.REQUEST_THINKING_TOKENS: sampling.thinking_tokens,
        names.REQUEST_STOP_SEQUENCES: request.stop or None,
        names.REQUEST_LEFT_OUT: request.left_out or None,
        names.REQUEST_PRIORITY: request.priority,
    }
    return known(asked)


def _output_type(request: ChatRequest) -> str:
    """What the caller holds the answer to; a regular expression or a grammar of its own says nothing of JSON."""
    return "json" if request.format and request.format.kind == "json_schema" else "text"


def _work(timeline: Timeline, arrived_ns: int) -> Attributes:
    """The figures one looks for first, so that reading one trace takes no arithmetic, and what did the work."""
    work: dict[str, AttributeValue | None] = {
        names.TIME_TO_FIRST_TOKEN_S: _first_token_s(timeline, arrived_ns),
        names.TIME_PER_OUTPUT_TOKEN_S: _per_token_s(timeline),
        names.QUEUE_S: between_s(timeline.queued_ns, timeline.admitted_ns),
        names.BATCH_WIDTH_MEAN: timeline.batch_width_mean,
        names.BATCH_WIDTH_MAX: timeline.batch_width_max or None,
        names.MODEL_REVISION: timeline.route.revision if timeline.route else None,
        names.QUANTIZATION: timeline.quantization,
        names.REQUEST_ADJUSTED: tuple(map(str, timeline.adjusted)) or None,
        names.ENGINE_RESTARTS: timeline.engine_restarts,
        names.RESUMES: resumes(timeline),
    }
    return known(work) | (_from_cache(timeline) if timeline.admitted_ns is not None else {})


def _decoded(timeline: Timeline) -> Attributes:
    per_token_s = _per_token_s(timeline)
    decoded: dict[str, AttributeValue | None] = {
        names.DECODE_TOKENS: timeline.output_tokens,
        names.DECODE_TOKENS_PER_S: 1 / per_token_s if per_token_s else None,
        names.DECODE_LONGEST_GAP_S: timeline.longest_gap_ns / 1e9 or None,
        names.DECODE_TOKEN_OFFSETS_MS: tuple(us / 1000 for us in timeline.token_offsets_us) or None,
        names.DECODE_TOKEN_STRIDE: timeline.token_stride if timeline.token_offsets_us else None,
        names.DECODE_PROPOSED_TOKENS: timeline.proposed_tokens or None,
        names.DECODE_ACCEPTED_TOKENS: timeline.accepted_tokens
        if timeline.proposed_tokens
        else None,
        names.BATCH_WIDTH_MEAN: timeline.batch_width_mean,
        names.BATCH_WIDTH_MAX: timeline.batch_width_max or None,
    }
    return known(decoded)


def _prefilled(timeline: Timeline) -> Attributes:
    prefilled: dict[str, AttributeValue | None] = {
        names.PREFILL_TOKENS: timeline.prompt_tokens - timeline.cached_tokens,
        names.CACHE_RESTORE_S: timeline.restored_ns / 1e9 or None,
        names.CACHE_MISS_TOKEN: timeline.departure.token if timeline.departure else None,
        names.CACHE_MISS_FIELD: timeline.departure.field if timeline.departure else None,
        names.PREFILL_CHUNKS: timeline.prefill_chunks,
    }
    return known(prefilled) | _from_cache(timeline)


def _from_cache(timeline: Timeline) -> Attributes:
    """How the prefix cache did: on the chat, to filter and count by, and on `prefill`, which it explains."""
    found: dict[str, AttributeValue | None] = {
        names.CACHE_MATCHED_TOKENS: timeline.cached_tokens,
        names.CACHE_OUTCOME: _cache_outcome(timeline),
        names.CACHE_MISS_REASON: timeline.cache_miss_reason,
    }
    return known(found)


def _cache_outcome(timeline: Timeline) -> str:
    """`hit` when all but the last token of each prompt, which is always computed, came from the cache."""
    if timeline.cached_tokens == 0:
        return "miss"
    return (
        "hit" if timeline.cached_tokens >= timeline.prompt_tokens - timeline.prompts else "partial"
    )


def _first_token_s(timeline: Timeline, arrived_ns: int) -> float | None:
    return between_s(arrived_ns, timeline.first_token_ns)


def _per_token_s(timeline: Timeline) -> float | None:
    decode_s = between_s(timeline.first_token_ns, timeline.finished_ns)
    # Choices decode together: a token of each takes no longer than one of a single one would in such a batch.
    tokens = timeline.output_tokens / timeline.choices
    if decode_s is None or tokens < 2:
        return None
    return decode_s / (tokens - 1)
