"""Models in the words of Anthropic's API: each, and in pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from mlx_manager.chat.abilities import Abilities
from mlx_manager.errors import InvalidRequest
from mlx_manager.wire.anthropic.blocks import validated
from mlx_manager.wire.anthropic.schema import ModelsQuery

ACTIVE = "active"
# The SDK writes a list so; others write the name once for each.
LIST = "lifecycle"
LIST_NAMES = (LIST, f"{LIST}[]")
# In these few words templates that know levels of effort tell them.
LEVELS = ("low", "medium", "high")
NO_LEVELS = ("xhigh", "max")


def models_query(parameters: Iterable[tuple[str, str]]) -> ModelsQuery:
    """Return which of the models are asked for. Raises InvalidRequest."""
    given = list(parameters)
    stages = [value for name, value in given if name in LIST_NAMES]
    single = {name: value for name, value in given if name not in LIST_NAMES}
    return validated(ModelsQuery, {**single, **({LIST: stages} if stages else {})}, "")


def model_info(
    model_id: str, display_name: str, created_s: int, abilities: Abilities
) -> dict[str, Any]:
    """Return a model as the models endpoints describe it; `created_s` is Unix time.

    An answer has whatever room the context leaves, so that there is no other limit of it.
    """
    created = datetime.fromtimestamp(created_s, UTC).isoformat().replace("+00:00", "Z")
    return {
        "type": "model",
        "id": model_id,
        "display_name": display_name,
        "created_at": created,
        "lifecycle": ACTIVE,
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
        "max_input_tokens": abilities.context_tokens,
        "max_tokens": abilities.context_tokens if abilities.makes_text else None,
        "capabilities": _capabilities(abilities),
    }


def _capabilities(abilities: Abilities) -> dict[str, Any]:
    """Return what a request for the model may ask for, by Anthropic's names, all of which are always there."""
    no = _supported(False)
    effort = _supported(abilities.reads_effort)
    thinking, text = _supported(abilities.thinks), _supported(abilities.makes_text)
    return {
        "batch": no,
        "citations": no,
        "code_execution": no,
        "context_management": no,
        "effort": effort | dict.fromkeys(LEVELS, effort) | dict.fromkeys(NO_LEVELS, no),
        "image_input": no,
        "pdf_input": no,
        "server_tools": no | {"code_execution": no, "web_search": no},
        "structured_outputs": text,
        # None of these is refused, of a model that doesn't think either.
        "thinking": thinking
        | {
            "types": {
                "adaptive": thinking,
                "enabled": thinking,
                "between_tools": text,
                "disabled": text,
            }
        },
    }


def _supported(is_supported: bool) -> dict[str, Any]:
    return {"supported": is_supported}


def models_page(models: Sequence[dict[str, Any]], query: ModelsQuery) -> dict[str, Any]:
    """Return the page of `models` that is asked for. Raises InvalidRequest when there is no such id."""
    wanted = [one for one in models if query.lifecycle is None or ACTIVE in query.lifecycle]
    ids = [model["id"] for model in wanted]
    begin = _position(ids, "after_id", query.after_id, -1) + 1
    end = _position(ids, "before_id", query.before_id, len(ids))
    if query.before_id is not None:
        first = max(begin, end - query.limit)
        page, has_more = wanted[first:end], first > begin
    else:
        page, has_more = wanted[begin:end][: query.limit], end - begin > query.limit
    return {
        "data": list(page),
        "has_more": has_more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _position(ids: Sequence[str], name: str, wanted: str | None, otherwise: int) -> int:
    if wanted is None:
        return otherwise
    if wanted not in ids:
        raise InvalidRequest(f"{name}: there is no model {wanted!r} here.", param=name)
    return ids.index(wanted)
