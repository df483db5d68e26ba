"""The traces as pages: the list, and one of them as a waterfall with an explanation."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from mlx_manager.errors import InvalidQuery, TraceNotFound
from mlx_manager.traces.explain import explain
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.summary import Trace, TracePage
from mlx_manager.web.filters import SPANS, STATUSES, Question, span_of
from mlx_manager.web.problem import problem_response
from mlx_manager.web.shell import page
from mlx_manager.web.sparkline import Sparkline, sparkline
from mlx_manager.web.store import CurrentTraces
from mlx_manager.web.waterfall import token_timelines, waterfall

PAGE = 50
# Over which the sparkline goes when the question names no time.
USUAL_TIME = "1h"

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Listing:
    """What the list shows at one moment."""

    found: TracePage
    models: tuple[str, ...]
    curve: Sparkline | None
    has_expired_cursor: bool = False


@router.get("/traces")
async def show_traces(request: Request, traces: CurrentTraces, cursor: str = "") -> Response:
    """List traces, newest first."""
    question = Question.read(request.query_params)
    listing = None
    if traces is not None:
        listing = await asyncio.to_thread(_listing, traces, question, cursor or None)
    span = span_of(question.time, USUAL_TIME)
    context = {
        "listing": listing,
        "models": listing.models if listing else (),
        "text_hint": "Id, name, model or request id",
        "question": question,
        "cursor": cursor,
        "spans": SPANS,
        "statuses": STATUSES,
        "curve_time": span.name if span else "",
    }
    return page(request, "traces.html", context)


@router.get("/traces/{trace_id}")
async def show_trace(
    request: Request, traces: CurrentTraces, trace_id: Annotated[str, Path(max_length=64)]
) -> Response:
    """Show one trace."""
    trace = await asyncio.to_thread(traces.get_trace, trace_id) if traces else None
    if trace is None:
        return problem_response(request, TraceNotFound(_gone(trace_id)))
    return page(request, "trace.html", await asyncio.to_thread(_described, trace))


def _listing(traces: TraceReader, question: Question, cursor: str | None) -> Listing:
    now_ns = time.time_ns()
    wanted = question.to_filter(now_ns)
    span = span_of(question.time, USUAL_TIME)
    since_ns = now_ns - (span.seconds if span else 3600) * 10**9
    curve = sparkline(traces.stats(since_ns, now_ns, wanted.model, buckets=60))
    models = traces.models()
    try:
        return Listing(traces.list_traces(wanted, PAGE, cursor), models, curve)
    except InvalidQuery:
        return Listing(traces.list_traces(wanted, PAGE), models, curve, has_expired_cursor=True)


def _described(trace: Trace) -> dict[str, object]:
    return {
        "trace": trace,
        "fall": waterfall(trace),
        "findings": explain(trace),
        "timelines": token_timelines(trace),
    }


def _gone(trace_id: str) -> str:
    return (
        f"There is no trace {trace_id}. It may still be on its way (a trace is kept a moment after its request has "
        "ended), or be older than the store's retention."
    )
