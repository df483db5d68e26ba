"""The traces as pages: the list, and one of them as a waterfall with an explanation."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from mlx_manager.errors import InvalidQuery, TraceNotFound
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.traces.explain import explain
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.summary import Trace, TracePage
from mlx_manager.web.filters import PERIODS, STATUSES, TraceQuestion, period_of
from mlx_manager.web.problem import problem_response
from mlx_manager.web.shell import page
from mlx_manager.web.sparkline import Sparkline, sparkline
from mlx_manager.web.store import CurrentTraces
from mlx_manager.web.waterfall import token_timelines, waterfall

PAGE = 50
# The shortest time that the sparkline shows, and the longest when the question names none.
LEAST_NS, MOST_NS = 60 * 10**9, 7 * 86_400 * 10**9

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Listing:
    """What the list shows at one moment."""

    found: TracePage
    models: tuple[str, ...]
    curve: Sparkline | None
    curve_ns: int
    has_expired_cursor: bool = False


@router.get("/traces")
async def show_traces(
    request: Request, traces: CurrentTraces, state: CurrentState, cursor: str = ""
) -> Response:
    """List traces, newest first."""
    question = TraceQuestion.read(request.query_params)
    listing = None
    if traces is not None:
        listing = await asyncio.to_thread(_listing, traces, question, cursor or None)
    context = {
        "listing": listing,
        "models": listing.models if listing else (),
        "keys": sorted(state.settings.api_keys),
        "text_hint": "Id, name, model or request id",
        "question": question,
        "cursor": cursor,
        "periods": PERIODS,
        "statuses": STATUSES,
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


def _listing(traces: TraceReader, question: TraceQuestion, cursor: str | None) -> Listing:
    now_ns = time.time_ns()
    wanted = question.to_filter(now_ns)
    has_expired_cursor = False
    try:
        found = traces.list_traces(wanted, PAGE, cursor)
    except InvalidQuery:
        found, has_expired_cursor = traces.list_traces(wanted, PAGE), True
    curve_ns = _curve_ns(question, found, now_ns)
    stats = traces.stats(now_ns - curve_ns, now_ns, wanted.model, buckets=60)
    return Listing(found, traces.models(), sparkline(stats), curve_ns, has_expired_cursor)


def _curve_ns(question: TraceQuestion, found: TracePage, now_ns: int) -> int:
    """How far back the sparkline goes: the time that was asked for, or as far as the list."""
    period = period_of(question.time)
    if period is not None:
        return period.seconds * 10**9
    oldest_ns = min((trace.started_ns for trace in found.traces), default=now_ns)
    return min(max(now_ns - oldest_ns, LEAST_NS), MOST_NS)


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
