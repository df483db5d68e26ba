"""A caller's trace is continued, and a caller's headers cost nothing."""

from __future__ import annotations

import time

import pytest
from opentelemetry import baggage, propagate, trace

from mlx_manager.observability.propagation import HEADER_LENGTH, BoundedTraceContext
from tests.support.spans import Spans, ids

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def test_a_trace_and_its_state_are_continued_and_baggage_is_not(spans: Spans) -> None:
    """`spans` has telemetry configured, and the propagator with it."""
    context = propagate.extract(
        {"traceparent": TRACEPARENT, "tracestate": "vendor=value", "baggage": "name=value"}
    )
    sent: dict[str, str] = {}
    propagate.inject(sent, context)

    assert sent == {"traceparent": TRACEPARENT, "tracestate": "vendor=value"}
    assert baggage.get_all(context) == {}


@pytest.mark.parametrize("pattern", ["a=b,", "a", " ", "\t", "=", ",", " ,", "a=b ", "-"])
@pytest.mark.parametrize("header", ["traceparent", "tracestate", "baggage"])
def test_no_header_takes_long_to_read(header: str, pattern: str) -> None:
    """60,000 blanks once took 13 s, on the event loop."""
    value = TRACEPARENT if header == "traceparent" else "a=b"
    headers = {"traceparent": TRACEPARENT, header: value + pattern * 1_000_000 + "x"}

    start = time.process_time()
    BoundedTraceContext().extract(headers)
    assert time.process_time() - start < 1


def test_many_headers_take_no_longer() -> None:
    headers = {"traceparent": [TRACEPARENT], "tracestate": ["", "a=b"] * 1_000_000}

    start = time.process_time()
    BoundedTraceContext().extract(headers)
    assert time.process_time() - start < 1


def test_a_state_that_is_too_long_is_left_out_and_the_trace_goes_on() -> None:
    state = "vendor=" + "v" * HEADER_LENGTH
    context = BoundedTraceContext().extract({"traceparent": TRACEPARENT, "tracestate": state})

    found = trace.get_current_span(context).get_span_context()
    assert ids(found) == (TRACE, PARENT)
    assert not found.trace_state
