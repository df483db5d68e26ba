"""The audit log as a page: every request to a model, newest first."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from mlx_manager.database import Database
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.audit.search import RequestFilter, search
from mlx_manager.mlx_server.audit.tables import AuditRow, Outcome
from mlx_manager.traces.reader import TraceReader
from mlx_manager.web.filters import PERIODS, Question, milliseconds, period_of
from mlx_manager.web.shell import page
from mlx_manager.web.store import CurrentTraces

PAGE = 50
OUTCOMES: Mapping[str, Outcome] = {
    "ok": "completed",
    "error": "failed",
    "cancelled": "cancelled",
    "interrupted": "interrupted",
    "running": "running",
}
EXPORTS = ("jsonl", "csv")

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class RequestPage:
    """Some rows of the audit log; `older` is the id to go on below, None on the last page."""

    rows: Sequence[AuditRow]
    older: int | None
    models: Sequence[str]


@router.get("/requests")
async def show_requests(
    request: Request, state: CurrentState, traces: CurrentTraces, before: str = ""
) -> Response:
    """List the audit log."""
    question = Question.read(request.query_params)
    wanted = to_filter(question, datetime.now(UTC))
    found = await audited_requests(state.database, wanted, _row_id(before))
    context = {
        "found": found,
        "lost_traces": await asyncio.to_thread(lost_traces, found.rows, traces),
        "models": found.models,
        "keys": sorted(state.settings.api_keys),
        "text_hint": "Request or trace id, model, error",
        "exports": {name: export_address(wanted, name) for name in EXPORTS},
        "question": question,
        "before": before,
        "periods": PERIODS,
        "statuses": OUTCOMES,
    }
    return page(request, "requests.html", context)


def lost_traces(rows: Sequence[AuditRow], traces: TraceReader | None) -> frozenset[str]:
    """Ids of the traces that were never written because the server was killed under the request."""
    interrupted = {row.trace_id for row in rows if row.outcome == "interrupted" and row.trace_id}
    return frozenset(one for one in interrupted if not (traces and traces.find_ids(one, limit=1)))


def to_filter(question: Question, now: datetime) -> RequestFilter:
    """The question in the words of the audit log."""
    period = period_of(question.time)
    return RequestFilter(
        text=question.text or None,
        outcome=OUTCOMES.get(question.status),
        model=question.model or None,
        key_id=question.key or None,
        min_duration_s=milliseconds(question.min_ms),
        max_duration_s=milliseconds(question.max_ms),
        since=now - timedelta(seconds=period.seconds) if period else None,
    )


def export_address(wanted: RequestFilter, file_format: str) -> str:
    """Where all requests that are wanted can be had as a file."""
    asked = {
        "text": wanted.text,
        "outcome": wanted.outcome,
        "model": wanted.model,
        "key_id": wanted.key_id,
        "min_duration_s": wanted.min_duration_s,
        "max_duration_s": wanted.max_duration_s,
        "since": wanted.since.isoformat(timespec="seconds") if wanted.since else None,
    }
    query = {name: value for name, value in asked.items() if value is not None}
    return f"/api/requests/export?{urlencode({'format': file_format, **query})}"


async def audited_requests(
    database: Database, wanted: RequestFilter, before: int | None
) -> RequestPage:
    """Return a page of the audit log and the models that it speaks of."""
    async with database.transaction() as session:
        rows = await search(session, wanted, PAGE + 1, before)
        models = await known_models(session)
    older = rows[PAGE - 1].id if len(rows) > PAGE else None
    return RequestPage(rows[:PAGE], older, models)


async def known_models(session: AsyncSession) -> list[str]:
    """Return the models that the log speaks of."""
    models = await session.scalars(select(AuditRow.model).distinct())
    return sorted(filter(None, models))


async def newest_request(database: Database) -> int | None:
    """The id of the row written last."""
    async with database.transaction() as session:
        return await session.scalar(select(func.max(AuditRow.id)))


def _row_id(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 19 else None
