"""What was used, as a page: requests and tokens by model, key, session, endpoint or day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import CurrentState
from mlx_manager.mlx_server.audit.usage import UsageBy, UsageSum, usage_by
from mlx_manager.web.filters import PERIODS, Question
from mlx_manager.web.requests import OUTCOMES, known_models, to_filter
from mlx_manager.web.shell import page

WAYS: tuple[UsageBy, ...] = get_args(UsageBy)
# Where the requests of one sum are listed, and the field there that its value goes into.
LISTS: dict[UsageBy, tuple[str, str]] = {
    "model": ("/requests", "model"),
    "key": ("/requests", "key"),
    "session": ("/traces", "session"),
}

router = APIRouter(include_in_schema=False)


@router.get("/requests/usage")
async def show_usage(request: Request, state: CurrentState, by: str = "") -> Response:
    """Show the sums."""
    question = Question.read(request.query_params)
    way = next((one for one in WAYS if one == by), WAYS[0])
    wanted = to_filter(question, datetime.now(UTC))
    async with state.database.transaction() as session:
        sums = await usage_by(session, way, wanted)
        models = await known_models(session)
    context = {
        "by": way,
        "ways": WAYS,
        "sums": sums,
        "total": total(sums),
        "links": [_address(way, one, question) for one in sums],
        "models": models,
        "keys": sorted(state.settings.api_keys),
        "text_hint": "Request or trace id, model, error",
        "question": question,
        "periods": PERIODS,
        "statuses": OUTCOMES,
    }
    return page(request, "usage.html", context)


def total(sums: Sequence[UsageSum]) -> UsageSum:
    """Return what all together have used."""
    names = ("requests", "failed", "input_tokens", "cached_tokens", "output_tokens")
    return UsageSum(None, *(sum(getattr(one, name) for one in sums) for name in names))


def _address(way: UsageBy, one: UsageSum, question: Question) -> str | None:
    """Where the requests of a sum are listed; None where they can't be asked for alone."""
    if way not in LISTS or one.value is None:
        return None
    path, field = LISTS[way]
    fields = {field: one.value, "time": question.time, "status": question.status}
    return f"{path}?{urlencode({name: value for name, value in fields.items() if value})}"
