"""What `/openapi.json` tells of errors and streams, which FastAPI can't know from the routes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from mlx_manager.wire.dialects import MODEL_API, dialect_of

OTLP = "/otlp/"
ADMIN = "/admin/"
OPTIONAL = "/metrics"
JSON, PROTOBUF, STREAM = "application/json", "application/x-protobuf", "text/event-stream"
# What can come as a stream, and as one object.
STREAMED = frozenset(
    {
        ("post", "/v1/chat/completions"),
        ("post", "/v1/completions"),
        ("post", "/v1/messages"),
        ("post", "/v1/responses"),
        ("get", "/v1/responses/{response_id}"),
    }
)
TEXT, MAYBE_TEXT = {"type": "string"}, {"type": ["string", "null"]}


def describe(app: FastAPI) -> None:
    """Let `/openapi.json` name every error that an operation may answer with, in the shape that it has."""
    told = app.openapi

    def described() -> dict[str, Any]:
        description = told()
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                _describe(operation, method, path)
        return description

    app.openapi = described  # type: ignore[method-assign]


def _describe(operation: dict[str, Any], method: str, path: str) -> None:
    responses = operation["responses"]
    # FastAPI's own for invalid bodies, which nobody gets.
    responses.pop("422", None)
    if (method, path) in STREAMED:
        responses["200"]["content"][STREAM] = {}
    if path.startswith(OTLP):
        responses["200"]["content"] = {JSON: {}, PROTOBUF: {}}
    for status in sorted(_statuses(operation, path)):
        responses.setdefault(str(status), _error(status, path))


def _statuses(operation: dict[str, Any], path: str) -> set[int]:
    asks, has_body = bool(operation.get("parameters")), "requestBody" in operation
    if path.startswith(MODEL_API):
        asked = {400, 404} if asks or has_body else set()
        return asked | ({413, 504} if has_body else set()) | {401, 500, 503}
    if path.startswith(OTLP):
        return {400, 403, 413, 415, 500, 503}
    asked = {400, 404, 422} if asks or path == OPTIONAL else set()
    if path.startswith(ADMIN) and has_body:
        # Orders that name a model: one that isn't there, or that is in use.
        asked = {400, 404, 409}
    return asked | ({413, 422} if has_body else set()) | {403, 500, 503}


def _error(status: int, path: str) -> dict[str, Any]:
    error: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if path.startswith(OTLP):
        # A `google.rpc.Status`, in the form in which the spans came.
        return error
    dialect = dialect_of(path, {})
    if dialect == "anthropic":
        content = {JSON: {"schema": _anthropic()}}
    elif dialect == "openai":
        # The list of models speaks Anthropic's to its clients.
        content = {JSON: {"schema": {"anyOf": [_openai(), _anthropic()]}}}
    else:
        content = {"application/problem+json": {"schema": _problem()}}
    return error | {"content": content}


def _anthropic() -> dict[str, Any]:
    inner = _object({"type": TEXT, "message": TEXT})
    return _object({"type": {"const": "error"}, "error": inner, "request_id": TEXT})


def _openai() -> dict[str, Any]:
    named = {"param": MAYBE_TEXT, "code": MAYBE_TEXT, "request_id": TEXT}
    return _object({"error": _object({"message": TEXT, "type": TEXT, **named})})


def _problem() -> dict[str, Any]:
    texts = ("type", "title", "detail", "instance", "code", "request_id")
    return _object({**dict.fromkeys(texts, TEXT), "status": {"type": "integer"}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}
