"""Render errors once, at the edge: in the shape of the API that was called, as problem details (RFC 9457) elsewhere."""

from __future__ import annotations

import http
import math
import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mlx_manager.errors import InvalidQuery, InvalidRequest, MlxManagerError
from mlx_manager.mlx_server.middleware.audit import entry_of
from mlx_manager.observability.paths import route_path
from mlx_manager.observability.server_spans import CLIENT_CLOSED_REQUEST
from mlx_manager.wire.anthropic.errors import error_body as anthropic_error_body
from mlx_manager.wire.dialects import Dialect, dialect_of
from mlx_manager.wire.openai.errors import error_body

PROBLEM_MEDIA_TYPE = "application/problem+json"
FIELD = re.compile(r"[A-Za-z0-9_]+")
# What pydantic calls the types that it tried, where that says nothing of a place: of forms told apart by a tag, too.
TYPE_NAMES = re.compile(r"str|int|float|bool|[A-Z][A-Za-z]*")
# These names are part of our answers, and Python's own change between its versions.
TITLES = {
    400: "Invalid request",
    404: "Not found",
    405: "Method not allowed",
    413: "Content too large",
}


def install_error_handlers(app: FastAPI) -> None:
    """Make every failure of `app` an answer in the caller's dialect, with the request id."""
    app.add_exception_handler(MlxManagerError, _drawn)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


async def _drawn(request: Request, exception: Exception) -> Response:
    return error_response(request, cast(MlxManagerError, exception))


def error_response(request: Request, error: MlxManagerError) -> Response:
    """Return a drawn error in the dialect of the path that was asked for."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.is_final:
        headers["X-Should-Retry"] = "false"
    return _rendered(
        request, error.status, error.code, error.title, error.message, error.param, headers
    )


async def _invalid(request: Request, exception: Exception) -> Response:
    """A body or a query that isn't what the endpoint takes: 400 in the model API, 422 elsewhere."""
    invalid = cast(RequestValidationError, exception)
    _note_asked(request, invalid.body)
    first = invalid.errors()[0]
    param = _field(first["loc"][1:])
    message = f"{param}: {_said(first)}" if param else _said(first)
    is_body = first["loc"][0] == "body"
    if is_body and "json" not in request.headers.get("content-type", ""):
        message = "The body must be JSON, sent with the header Content-Type: application/json."
    status = 400 if _dialect(request) else 422
    kind = InvalidRequest if is_body else InvalidQuery
    return _rendered(request, status, kind.code, kind.title, message, param, {})


def _said(error: Mapping[str, Any]) -> str:
    """Return what is wrong; of a number that JSON has none of, which Python reads all the same, the number too."""
    if error["type"] != "finite_number":
        return str(error["msg"])
    number = float(error["input"])
    name = "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return f"{error['msg']}, and not {name}."


def _note_asked(request: Request, body: object) -> None:
    """Let the audit log say which model a refused body was for."""
    entry = entry_of(request.scope)
    if entry is not None and isinstance(body, dict) and isinstance(body.get("model"), str):
        entry.asked(body["model"], body.get("stream") is True)


def _field(location: tuple[int | str, ...]) -> str | None:
    """Return the path of a field, `messages[0].content`, without pydantic's names for the types it tried there."""
    parts = list(takewhile(lambda part: FIELD.fullmatch(str(part)), location))
    named = (
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in parts
        if not TYPE_NAMES.fullmatch(str(part))
    )
    return "".join(named).removeprefix(".") or None


async def _http(request: Request, exception: Exception) -> Response:
    return http_error_response(request, cast(HTTPException, exception))


def http_error_response(request: Request, error: HTTPException) -> Response:
    """Return what the framework refuses (unknown paths, wrong methods) in the caller's dialect."""
    entry = entry_of(request.scope)
    if entry is not None and isinstance(error.__cause__, ClientDisconnect):
        entry.cancel()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    title = TITLES.get(error.status_code) or http.HTTPStatus(error.status_code).phrase
    message = error.detail
    if error.status_code == 404:
        message = f"There is nothing at {request.method} {request.url.path}."
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "other methods")
        message = f"{request.url.path} does not take {request.method}. It takes {allowed}."
    code = title.lower().replace(" ", "_")
    headers = dict(error.headers or {})
    return _rendered(request, error.status_code, code, title, message, None, headers)


def failure_response(request: Request) -> Response:
    """Answer a request that failed for a reason nobody drew."""
    message = (
        "The server failed on this request. Its log has the details under request id "
        f"{request.state.request_id}."
    )
    return _rendered(request, 500, MlxManagerError.code, MlxManagerError.title, message, None, {})


def _rendered(
    request: Request,
    status: int,
    code: str,
    title: str,
    message: str,
    param: str | None,
    headers: dict[str, str],
) -> Response:
    request_id: str = request.state.request_id
    if (entry := entry_of(request.scope)) is not None:
        entry.fail(code, status)
    dialect = _dialect(request)
    if dialect == "anthropic":
        body = anthropic_error_body(message, status=status, code=code, request_id=request_id)
        return JSONResponse(body, status_code=status, headers=headers)
    if dialect == "openai":
        body = error_body(message, status=status, code=code, param=param, request_id=request_id)
        return JSONResponse(body, status_code=status, headers=headers)
    problem: dict[str, Any] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": message,
        "instance": request.url.path,
        "code": code,
        "request_id": request_id,
    }
    if param is not None:
        problem["param"] = param
    return JSONResponse(problem, status_code=status, headers=headers, media_type=PROBLEM_MEDIA_TYPE)


def _dialect(request: Request) -> Dialect | None:
    return dialect_of(route_path(request.scope), request.headers)
