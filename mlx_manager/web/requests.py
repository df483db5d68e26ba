"""The audit log as a page: every request to a model, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from sqlalchemy import func, select

from mlx_manager.database import Database
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.audit.service import recent
from mlx_manager.mlx_server.audit.tables import AuditRow
from mlx_manager.web.shell import page

PAGE = 50

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class RequestPage:
    """Some rows of the audit log; `older` is the id to go on below, None on the last page."""

    rows: Sequence[AuditRow]
    older: int | None


@router.get("/requests")
async def show_requests(request: Request, state: CurrentState, before: str = "") -> Response:
    """List the audit log."""
    found = await audited_requests(state.database, _row_id(before))
    return page(request, "requests.html", {"found": found, "before": before})


async def audited_requests(database: Database, before: int | None) -> RequestPage:
    """Return a page of the audit log."""
    async with database.sessions() as session:
        rows = list(await recent(session, PAGE + 1, before))
    return RequestPage(rows[:PAGE], rows[PAGE - 1].id if len(rows) > PAGE else None)


async def newest_request(database: Database) -> int | None:
    """The id of the row written last."""
    async with database.sessions() as session:
        return await session.scalar(select(func.max(AuditRow.id)))


def _row_id(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 19 else None
