"""Spans as a sink gets them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import httpx
import logfire
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind

from mlx_manager.observability.logfire_config import instrument_httpx
from mlx_manager.observability.setup import TelemetryOptions, configure, span_sink
from tests.support.running import eventually


@dataclass(frozen=True)
class Spans:
    """The finished spans of one test, redacted like those of every sink."""

    exporter: InMemorySpanExporter

    @property
    def all(self) -> list[ReadableSpan]:
        # Where a test before has used Logfire's own exporter, a span that begins is given out as well, by another id.
        found = self.exporter.get_finished_spans()
        return [one for one in found if _attribute(one, "logfire.span_type") != "pending_span"]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        named = self.named(name)
        assert len(named) == 1, [(ids(span.context), span.to_json()) for span in named]
        return named[0]

    async def chat_in(self, trace_id: str) -> ReadableSpan:
        """The server's chat of one trace; a client's, once one is instrumented in this process, has the same name."""

        def found() -> list[ReadableSpan]:
            ours = [one for one in self.all if _attribute(one, "gen_ai.provider.name") == "mlx"]
            in_trace = [one for one in ours if ids(one.context)[0] == trace_id]
            return [one for one in in_trace if one.name.startswith("chat ")]

        await eventually(lambda: bool(found()))
        [chat] = found()
        return chat

    def of_kind(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.all if span.kind is kind]

    def text(self) -> str:
        return "\n".join(span.to_json() for span in self.all)

    async def wait(self, name: str) -> ReadableSpan:
        """The span that a server ends shortly after its client has the answer."""
        await eventually(lambda: bool(self.named(name)))
        return self.one(name)

    async def of_answer(self, response_id: str) -> list[ReadableSpan]:
        """The chat that gave this answer and its phases, when the last one is there; others may still end beside it."""

        def found() -> list[ReadableSpan]:
            each = {ids(one.context): one for one in self.all}.values()
            # An instrumented client has a span of the same answer.
            ours = [one for one in each if _attribute(one, "gen_ai.provider.name") == "mlx"]
            chats = [one for one in ours if _attribute(one, "gen_ai.response.id") == response_id]
            above = {ids(chat.context) for chat in chats}
            return [*chats, *(one for one in each if ids(one.parent) in above)]

        with suppress(AssertionError):
            await eventually(lambda: any(one.name == "decode" for one in found()))
        assert any(one.name == "decode" for one in found()), [
            (one.name, ids(one.context), ids(one.parent)) for one in self.all
        ]
        return found()


def _attribute(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


@pytest.fixture
def spans() -> Iterator[Spans]:
    configure(TelemetryOptions("mlx-test"))
    instrument_httpx()
    exporter = InMemorySpanExporter()
    with span_sink(SimpleSpanProcessor(exporter)):
        yield Spans(exporter)


class UntracedTransport(httpx.AsyncHTTPTransport):
    """Sends requests without a span and without a `traceparent`."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with logfire.suppress_instrumentation():
            return await super().handle_async_request(request)


def ids(context: SpanContext | None) -> tuple[str, str]:
    """Trace and span id in hexadecimal; empty for the parent of a root."""
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context else ("", "")
