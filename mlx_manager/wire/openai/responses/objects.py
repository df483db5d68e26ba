"""What the Responses API gives: `response` objects, items of output and lists of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mlx_manager.chat.events import Usage
from mlx_manager.errors import InvalidRequest, MlxManagerError, UnsupportedParameter
from mlx_manager.wire.left_out import hosted_beside_others
from mlx_manager.wire.openai.errors import error_type
from mlx_manager.wire.openai.responses.items import ItemObject
from mlx_manager.wire.openai.responses.namespaces import NAMESPACE
from mlx_manager.wire.openai.responses.parameters import ENCRYPTED, LOGPROBS
from mlx_manager.wire.openai.responses.requests import verbosity_of
from mlx_manager.wire.openai.responses.schema import FunctionTool, ResponsesBody
from mlx_manager.wire.signature import Signer

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ResponseObject = dict[str, Any]
UNFINISHED: tuple[Status, ...] = ("queued", "in_progress")
# What was adjusted, of a response in the background: the header of its request is sent before anybody knows.
ADJUSTED = "adjusted_parameters"
# Echoed as they were sent, where they were.
LABELS = ("user", "safety_identifier", "prompt_cache_key", "max_tool_calls")


def new_response(
    body: ResponsesBody, response_id: str, created_s: int, status: Status
) -> ResponseObject:
    """Return a response whose answer is still to come."""
    extra = body.model_extra or {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_s,
        "status": status,
        "background": bool(body.background),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": body.is_stored,
        "temperature": body.temperature,
        "text": {"format": _format(body), "verbosity": verbosity_of(body) or "medium"},
        "tool_choice": _tool_choice(body),
        "tools": _tools(body),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        **{name: extra.get(name) for name in LABELS},
    }


def _format(body: ResponsesBody) -> dict[str, Any]:
    asked = body.text.format if body.text else None
    if asked is None:
        return {"type": "text"}
    return asked.model_dump(by_alias=True, exclude_unset=True)


def _tools(body: ResponsesBody) -> list[dict[str, Any]]:
    """Return the tools that the model is given."""
    tools = body.tools or []
    absent = hosted_beside_others([tool.type for tool in tools])
    return [_described(tool) for at, tool in enumerate(tools) if at not in absent]


def _described(tool: FunctionTool) -> dict[str, Any]:
    if tool.type != NAMESPACE:
        # What OpenAI would hold to its schema unasked isn't held here, and the response says so.
        return {**tool.model_dump(exclude={"tools"}), "strict": bool(tool.strict)}
    some = [_described(one) for one in tool.tools or ()]
    group = {"type": NAMESPACE, "name": tool.name, "description": tool.description}
    return {**group, "tools": some}


def _tool_choice(body: ResponsesBody) -> str | dict[str, Any]:
    choice = body.tool_choice or "auto"
    return choice if isinstance(choice, str) else choice.model_dump(exclude_unset=True)


def failure(error: MlxManagerError) -> dict[str, Any]:
    """Return the error of a response that failed. Its `code` is one that OpenAI's clients know; `type` says more."""
    code = "server_error" if error.status >= 500 else "invalid_prompt"
    kind = error_type(error.status)
    return {"code": code, "message": error.message, "param": error.param, "type": kind}


def usage(counts: Usage) -> dict[str, Any]:
    """Return token counts in the Responses API's form."""
    return {
        "input_tokens": counts.input_tokens,
        "input_tokens_details": {"cached_tokens": counts.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": counts.output_tokens,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
        "total_tokens": counts.input_tokens + counts.output_tokens,
    }


def including(response: ResponseObject, names: Sequence[str], signer: Signer) -> ResponseObject:
    """Return a stored response with what `names` ask for besides.

    Raises UnsupportedParameter for log-probabilities that it was not asked for with: nobody knows them any more.
    """
    if LOGPROBS in names and not _has_logprobs(response):
        raise UnsupportedParameter(
            f"Response {response['id']!r} has no log-probabilities. Include them when a response is made.",
            param="include",
        )
    if ENCRYPTED not in names:
        return response
    output = [
        item | {"encrypted_content": sealed(item, signer)} if item["type"] == "reasoning" else item
        for item in response["output"]
    ]
    return response | {"output": output}


def _has_logprobs(response: ResponseObject) -> bool:
    messages = [item for item in response["output"] if item["type"] == "message"]
    return all(
        part["logprobs"] or not part["text"] for item in messages for part in item["content"]
    )


def sealed(reasoning: ItemObject, signer: Signer) -> str:
    """Return what an item of reasoning says in the form of its `encrypted_content`."""
    text = "".join(part["text"] for part in reasoning["content"])
    return signer.sign(text, is_shown=False)


def deleted(response_id: str) -> dict[str, Any]:
    """Return what a client is told of a response that is no more."""
    return {"id": response_id, "object": "response", "deleted": True}


def items_page(
    items: Sequence[ItemObject], limit: int, after: str | None, is_ascending: bool
) -> dict[str, Any]:
    """Return the page of `items` behind the one that `after` names. Raises InvalidRequest when there is none such."""
    ordered = list(items) if is_ascending else list(reversed(items))
    if after is not None:
        ids = [item["id"] for item in ordered]
        if after not in ids:
            raise InvalidRequest(f"after: there is no item {after!r} here.", param="after")
        ordered = ordered[ids.index(after) + 1 :]
    page = ordered[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(ordered) > limit,
    }
