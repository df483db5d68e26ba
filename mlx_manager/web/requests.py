"""The audit log as a page: every request to a model, newest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response
from sqlalchemy import ColumnElement, func, or_, select

from mlx_manager.database import Database
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.audit.tables import AuditRow
from mlx_manager.web.filters import SPANS, Question, milliseconds, span_of
from mlx_manager.web.shell import page

PAGE = 50
EXPORTS = ("jsonl", "csv")
OUTCOMES = {"ok": "completed", "error": "failed", "cancelled": "cancelled"}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class RequestPage:
    """Some rows of the audit log; `older` is the id to go on below, None on the last page."""

    rows: Sequence[AuditRow]
    older: int | None
    models: Sequence[str]


@router.get("/requests")
async def show_requests(request: Request, state: CurrentState, before: str = "") -> Response:
    """List the audit log."""
    question = Question.read(request.query_params)
    found = await audited_requests(state.database, question, _row_id(before))
    context = {
        "found": found,
        "models": found.models,
        "text_hint": "Request or trace id, model, error",
        "exports": {name: question.address("/api/requests", format=name) for name in EXPORTS},
        "question": question,
        "before": before,
        "spans": SPANS,
        "statuses": OUTCOMES,
    }
    return page(request, "requests.html", context)


async def audited_requests(
    database: Database, question: Question, before: int | None
) -> RequestPage:
    """Return a page of the audit log and the models that it speaks of."""
    wanted = [*_conditions(question), *([AuditRow.id < before] if before is not None else [])]
    newest_first = select(AuditRow).where(*wanted).order_by(AuditRow.id.desc()).limit(PAGE + 1)
    async with database.sessions() as session:
        rows = (await session.scalars(newest_first)).all()
        models = (await session.scalars(select(AuditRow.model).distinct())).all()
    older = rows[PAGE - 1].id if len(rows) > PAGE else None
    return RequestPage(rows[:PAGE], older, sorted(filter(None, models)))


async def newest_request(database: Database) -> int | None:
    """The id of the row written last."""
    async with database.sessions() as session:
        return await session.scalar(select(func.max(AuditRow.id)))


def _conditions(question: Question) -> Iterator[ColumnElement[bool]]:
    if question.text:
        columns = (AuditRow.request_id, AuditRow.trace_id, AuditRow.model, AuditRow.error_code)
        yield or_(*(column.icontains(question.text, autoescape=True) for column in columns))
    if question.status in OUTCOMES:
        yield AuditRow.outcome == OUTCOMES[question.status]
    if question.model:
        yield AuditRow.model == question.model
    if (least_s := milliseconds(question.min_ms)) is not None:
        yield AuditRow.duration_s >= least_s
    if (most_s := milliseconds(question.max_ms)) is not None:
        yield AuditRow.duration_s <= most_s
    if span := span_of(question.time):
        yield AuditRow.started_at >= datetime.now(UTC) - timedelta(seconds=span.seconds)


def _row_id(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 19 else None
