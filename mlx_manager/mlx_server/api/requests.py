"""`/api/requests`: the audit log in pages, by filter, live and as a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from mlx_manager.errors import InvalidRequest, RequestNotFound
from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.audit.export import to_csv, to_jsonl
from mlx_manager.mlx_server.audit.schemas import LoggedRequest
from mlx_manager.mlx_server.audit.search import (
    RequestFilter,
    count_outcomes,
    search,
    search_after,
    search_all,
)
from mlx_manager.mlx_server.audit.tables import AuditRow, Outcome
from mlx_manager.mlx_server.audit.usage import UsageBy, UsageSum, usage_by

MOST_ROWS = 500
MOST_IDS = 100
LARGEST_ID = 2**63 - 1
EXPORTS = {
    "jsonl": (to_jsonl, "application/jsonl"),
    "csv": (to_csv, "text/csv; charset=utf-8"),
}
RowId = Annotated[int, Field(ge=0, le=LARGEST_ID)]

router = APIRouter(prefix="/api/requests", tags=["Requests"])


class FilterQuery(BaseModel):
    """What the requests must all be. Times are RFC 3339 with a zone; `status` is a number or a class like `5xx`."""

    model_config = ConfigDict(extra="forbid")

    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    model: str | None = None
    endpoint: str | None = None
    outcome: Outcome | None = None
    status: Annotated[str, Field(pattern=r"^[1-5](xx|\d\d)$")] | None = None
    error_code: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    key_id: str | None = None
    session_id: str | None = None
    client_address: str | None = None
    min_duration_s: Annotated[float, Field(ge=0)] | None = None
    max_duration_s: Annotated[float, Field(ge=0)] | None = None
    text: Annotated[str, Field(max_length=200)] | None = None
    id: Annotated[list[RowId], Field(max_length=MOST_IDS)] = []

    def to_filter(self) -> RequestFilter:
        """Return the filter in the audit log's words."""
        asked = self.model_dump(include=set(FilterQuery.model_fields) - {"status", "id"})
        return RequestFilter(**asked, statuses=_status_range(self.status), ids=tuple(self.id))


class PageQuery(FilterQuery):
    """A page of them: the newest, those `before` an id (older), or those `after` one (newer)."""

    limit: Annotated[int, Field(ge=1, le=MOST_ROWS)] = 50
    before: RowId | None = None
    after: RowId | None = None


class ExportQuery(FilterQuery):
    """All of them in a file."""

    format: Literal["jsonl", "csv"] = "jsonl"


class UsageQuery(FilterQuery):
    """What they are added up by."""

    by: UsageBy = "model"


class UsageReport(BaseModel):
    """What the requests that match have used, by what they have in common."""

    by: UsageBy
    usage: list[UsageSum]


class RequestPage(BaseModel):
    """A page, newest first. `before` asks for the next older one, null when there is none; `after` for news."""

    requests: list[LoggedRequest]
    before: int | None
    after: int


class OutcomeCounts(BaseModel):
    """How many requests came to which end."""

    total: int
    outcomes: dict[Outcome, int]


@router.get("")
async def list_requests(query: Annotated[PageQuery, Query()], state: CurrentState) -> RequestPage:
    """List requests to the model API by filter, newest first, in pages; poll with `after` to follow them live."""
    wanted = query.to_filter()
    async with state.database.transaction() as session:
        if query.after is None:
            rows = await search(session, wanted, query.limit, query.before)
        elif query.before is None:
            rows = await search_after(session, wanted, query.limit, query.after)
        else:
            raise InvalidRequest("Give `before` or `after`, not both.", param="after")
    return _page(rows, query)


@router.get(
    "/export",
    response_class=Response,
    responses={200: {"content": {media_type: {} for _encode, media_type in EXPORTS.values()}}},
)
async def export_requests(
    query: Annotated[ExportQuery, Query()], state: CurrentState
) -> StreamingResponse:
    """Write all requests that match into a file, `format` jsonl or csv, newest first."""
    pages = search_all(state.database, query.to_filter())
    encode, media_type = EXPORTS[query.format]
    name = f'attachment; filename="requests.{query.format}"'
    return StreamingResponse(
        encode(pages), media_type=media_type, headers={"Content-Disposition": name}
    )


@router.get("/counts")
async def count_requests(
    query: Annotated[FilterQuery, Query()], state: CurrentState
) -> OutcomeCounts:
    """Count the requests that match by how they ended."""
    async with state.database.transaction() as session:
        outcomes = await count_outcomes(session, query.to_filter())
    return OutcomeCounts(total=sum(outcomes.values()), outcomes=outcomes)


@router.get("/usage")
async def report_usage(query: Annotated[UsageQuery, Query()], state: CurrentState) -> UsageReport:
    """Add up requests and tokens of those that match, `by` model, key, session, endpoint or day."""
    async with state.database.transaction() as session:
        found = await usage_by(session, query.by, query.to_filter())
    return UsageReport(by=query.by, usage=list(found))


@router.get("/{request_id}")
async def get_request(request_id: str, state: CurrentState) -> LoggedRequest:
    """Describe one request by its id; of several whose clients sent the same id, the latest."""
    async with state.database.transaction() as session:
        rows = await search(session, RequestFilter(request_id=request_id), 1)
    if not rows:
        raise RequestNotFound(
            f"The audit log has no request {request_id}. It may be older than what is kept, "
            "or have gone to another path than the model API."
        )
    return LoggedRequest.model_validate(rows[0])


def _page(rows: Sequence[AuditRow], query: PageQuery) -> RequestPage:
    is_full = len(rows) == query.limit and query.after is None
    return RequestPage(
        requests=[LoggedRequest.model_validate(row) for row in rows],
        before=rows[-1].id if is_full else None,
        after=rows[0].id if rows else query.after or 0,
    )


def _status_range(status: str | None) -> tuple[int, int] | None:
    if status is None:
        return None
    if status.endswith("xx"):
        lowest = int(status[0]) * 100
        return lowest, lowest + 100
    return int(status), int(status) + 1
