"""One span per call of the OpenAI SDK: retries inside, open until its stream ends, token counts on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from mlx_manager.observability import attributes as names
from mlx_manager.observability.client_metrics import ClientMetrics
from mlx_manager.observability.instruments import SCOPE

# The SDK's objects differ by endpoint and version. They are looked at, never relied on.
SdkObject = Any

_OPERATIONS = {
    "/chat/completions": "chat",
    "/responses": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
}
_ASKED = {
    "max_tokens": names.REQUEST_MAX_TOKENS,
    "max_completion_tokens": names.REQUEST_MAX_TOKENS,
    "max_output_tokens": names.REQUEST_MAX_TOKENS,
    "temperature": names.REQUEST_TEMPERATURE,
    "top_p": names.REQUEST_TOP_P,
    "frequency_penalty": names.REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": names.REQUEST_PRESENCE_PENALTY,
    "seed": names.REQUEST_SEED,
    "stream": names.REQUEST_STREAM,
}
# Chat, completions and embeddings say "prompt" and "completion", the Responses API "input" and "output".
_USAGE = {
    "prompt_tokens": names.INPUT_TOKENS,
    "input_tokens": names.INPUT_TOKENS,
    "completion_tokens": names.OUTPUT_TOKENS,
    "output_tokens": names.OUTPUT_TOKENS,
}
_USAGE_DETAILS = {
    ("prompt_tokens_details", "cached_tokens"): names.CACHE_READ_TOKENS,
    ("input_tokens_details", "cached_tokens"): names.CACHE_READ_TOKENS,
    ("prompt_tokens_details", "cache_write_tokens"): names.CACHE_WRITE_TOKENS,
    ("input_tokens_details", "cache_write_tokens"): names.CACHE_WRITE_TOKENS,
    ("completion_tokens_details", "reasoning_tokens"): names.REASONING_TOKENS,
    ("output_tokens_details", "reasoning_tokens"): names.REASONING_TOKENS,
}


def trace_openai(client: type[SdkObject], async_client: type[SdkObject]) -> None:
    """Wrap `request`, through which the two clients send every call of every endpoint."""
    metrics = ClientMetrics()
    client.request = _traced(client.request, metrics)
    async_client.request = _traced_async(async_client.request, metrics)


def _traced(request: Callable[..., SdkObject], metrics: ClientMetrics) -> Callable[..., SdkObject]:
    @wraps(request)
    def traced(
        self: SdkObject, cast_to: SdkObject, options: SdkObject, **rest: SdkObject
    ) -> SdkObject:
        if options.url not in _OPERATIONS:
            return request(self, cast_to, options, **rest)
        call = OpenAICall(options, self.base_url, metrics)
        with call.being_made():
            answer = request(self, cast_to, _with_trace_context(options), **rest)
        return call.watch(answer, _watch_stream)

    return traced


def _traced_async(
    request: Callable[..., SdkObject], metrics: ClientMetrics
) -> Callable[..., SdkObject]:
    @wraps(request)
    async def traced(
        self: SdkObject, cast_to: SdkObject, options: SdkObject, **rest: SdkObject
    ) -> SdkObject:
        if options.url not in _OPERATIONS:
            return await request(self, cast_to, options, **rest)
        call = OpenAICall(options, self.base_url, metrics)
        with call.being_made():
            answer = await request(self, cast_to, _with_trace_context(options), **rest)
        return call.watch(answer, _watch_async_stream)

    return traced


class OpenAICall:
    """The span and the metrics of one call, from before the request to the end of the answer."""

    def __init__(self, options: SdkObject, base_url: SdkObject, metrics: ClientMetrics) -> None:
        body = options.json_data if isinstance(options.json_data, Mapping) else {}
        operation, model = _OPERATIONS[options.url], str(body.get("model", ""))
        self._started = time.perf_counter()
        self._is_first_item = True
        self._is_complete = False
        self._is_ended = False
        self._metrics = metrics
        # What the span says, kept beside it: in a trace that isn't sampled the span forgets it.
        self._said: dict[str, AttributeValue] = {
            names.OPERATION_NAME: operation,
            names.PROVIDER_NAME: "openai",
            names.REQUEST_MODEL: model,
            names.SERVER_ADDRESS: str(base_url.host),
            names.SERVER_PORT: base_url.port or 443,
            **_asked(body),
        }
        self._span = trace.get_tracer(SCOPE).start_span(
            names.chat_span_name(operation, model),
            kind=SpanKind.CLIENT,
            attributes=self._said,
        )

    @contextmanager
    def being_made(self) -> Iterator[None]:
        """Make the span current for what the SDK does (its HTTP attempts); a failure ends it."""
        try:
            with trace.use_span(self._span, record_exception=False, set_status_on_exception=False):
                yield
        except BaseException as error:
            self.end(error)
            raise

    def watch(
        self, answer: SdkObject, watch_stream: Callable[[OpenAICall, SdkObject], None]
    ) -> SdkObject:
        """Take the counts from a whole answer, or from a stream as it is read."""
        if hasattr(answer, "_iterator"):
            watch_stream(self, answer)
        else:
            self.observe(answer)
            self._is_complete = True
            self.end()
        return answer

    def observe_item(self, item: SdkObject) -> None:
        """Look at one item of a stream. Most hold text and no more."""
        if self._is_first_item:
            self._is_first_item = False
            self._say({names.TIME_TO_FIRST_CHUNK: time.perf_counter() - self._started})
            self.observe(item)
        elif getattr(item, "usage", None) or _finish_reasons(item):
            self.observe(item)
        elif (whole := getattr(item, "response", None)) is not None:
            self.observe(whole)

    def observe(self, answer: SdkObject) -> None:
        """Write down what the answer, or a piece of it, says about itself."""
        found: dict[str, AttributeValue | None] = {
            names.RESPONSE_ID: getattr(answer, "id", None),
            names.RESPONSE_MODEL: getattr(answer, "model", None),
            names.RESPONSE_FINISH_REASONS: _finish_reasons(answer) or None,
            **_counts(getattr(answer, "usage", None)),
        }
        self._say({name: value for name, value in found.items() if value is not None})

    def complete(self) -> None:
        """The stream has been read to its end."""
        self._is_complete = True

    def end(self, error: BaseException | None = None) -> None:
        """End the span, once; an answer that its reader left before the end is cancelled, not failed."""
        if self._is_ended:
            return
        self._is_ended = True
        is_left = error is None and not self._is_complete
        if is_left or isinstance(error, GeneratorExit | asyncio.CancelledError):
            self._say({names.CANCELLED: True})
        elif error is not None:
            self._say({names.ERROR_TYPE: type(error).__qualname__})
            self._span.set_status(StatusCode.ERROR)
        duration_s = time.perf_counter() - self._started
        self._metrics.record(duration_s, self._said, trace.set_span_in_context(self._span))
        self._span.end()

    def _say(self, attributes: Mapping[str, AttributeValue]) -> None:
        self._said.update(attributes)
        self._span.set_attributes(attributes)


def _watch_stream(call: OpenAICall, stream: SdkObject) -> None:
    items, close = stream._iterator, stream.close

    def observed() -> Iterator[SdkObject]:
        with _reading(call):
            for item in items:
                call.observe_item(item)
                yield item
            call.complete()

    def close_and_end() -> None:
        close()
        call.end()

    stream.__dict__.update(_iterator=observed(), close=close_and_end)


def _watch_async_stream(call: OpenAICall, stream: SdkObject) -> None:
    items, close = stream._iterator, stream.close

    async def observed() -> AsyncIterator[SdkObject]:
        with _reading(call):
            async for item in items:
                call.observe_item(item)
                yield item
            call.complete()

    async def close_and_end() -> None:
        await close()
        call.end()

    stream.__dict__.update(_iterator=observed(), close=close_and_end)


@contextmanager
def _reading(call: OpenAICall) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        call.end(error)
        raise
    call.end()


def _with_trace_context(options: SdkObject) -> SdkObject:
    """Send `traceparent`, also where httpx is not instrumented."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    given = options.headers if isinstance(options.headers, Mapping) else {}
    return options.model_copy(update={"headers": {**carrier, **given}})


def _asked(body: Mapping[str, SdkObject]) -> dict[str, AttributeValue]:
    return {
        name: body[key]
        for key, name in _ASKED.items()
        if isinstance(body.get(key), bool | int | float)
    }


def _finish_reasons(answer: SdkObject) -> tuple[str, ...]:
    choices = getattr(answer, "choices", None) or ()
    reasons = (getattr(choice, "finish_reason", None) for choice in choices)
    return tuple(reason for reason in reasons if reason)


def _counts(usage: SdkObject) -> dict[str, AttributeValue | None]:
    if usage is None:
        return {}
    plain = {name: getattr(usage, key, None) for key, name in _USAGE.items() if hasattr(usage, key)}
    detailed = {
        name: getattr(getattr(usage, group, None), key, None)
        for (group, key), name in _USAGE_DETAILS.items()
        if hasattr(usage, group)
    }
    return plain | detailed
