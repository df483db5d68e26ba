"""Tell a person in a browser what went wrong, in the shell; everybody else gets the problem document."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mlx_manager.errors import MlxManagerError
from mlx_manager.mlx_server.api.errors import error_response, http_error_response
from mlx_manager.observability.paths import route_path
from mlx_manager.web.shell import page

# Programs read these, also when they say that they take HTML.
NO_PAGES = ("/v1/", "/api/", "/otlp/", "/static/")


def install_error_pages(app: FastAPI) -> None:
    """Answer browsers with a page where the server would send a problem document."""

    async def drawn(request: Request, error: Exception) -> Response:
        assert isinstance(error, MlxManagerError)
        return problem_response(request, error)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404 and _wants_page(request):
            return _problem_page(
                request, 404, "Not found", f"There is nothing at {request.url.path}."
            )
        return http_error_response(request, error)

    app.add_exception_handler(MlxManagerError, drawn)
    app.add_exception_handler(HTTPException, http)


def problem_response(request: Request, error: MlxManagerError) -> Response:
    """Return the error as the asker reads it."""
    if _wants_page(request):
        return _problem_page(request, error.status, error.title, error.message)
    return error_response(request, error)


def _problem_page(request: Request, status: int, title: str, message: str) -> Response:
    context = {
        "title": title,
        "status": status,
        "message": message,
        "request_id": request.state.request_id,
    }
    return page(request, "problem.html", context, status_code=status)


def _wants_page(request: Request) -> bool:
    is_for_programs = f"{route_path(request.scope)}/".startswith(NO_PAGES)
    return not is_for_programs and "text/html" in request.headers.get("accept", "")
