"""Open an entry of the audit log for each request to the model API, and close it with the status that was sent."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_manager.chat.request import Origin
from mlx_manager.mlx_server.audit.entry import Entry
from mlx_manager.mlx_server.middleware.api_key import MODEL_API, ApiKeys
from mlx_manager.mlx_server.middleware.session import session_of
from mlx_manager.mlx_server.state import ServerState
from mlx_manager.observability.paths import route_path
from mlx_manager.observability.server_spans import CLIENT_CLOSED_REQUEST

STORED_RESPONSES, CANCEL = "/v1/responses/", "/cancel"


class AuditMiddleware:
    """Every POST below `/v1` is a request to a model, whether or not it gets that far; reading lists is none.

    Nor is cancelling a response, whose id is in the path.

    `trace_id` is asked inside the request's server span. Stands inside of what gives requests their ids, and outside
    of what answers failures.
    """

    def __init__(self, app: ASGIApp, trace_id: Callable[[], str | None], keys: ApiKeys) -> None:
        self._app = app
        self._trace_id = trace_id
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_for_a_model(scope):
            await self._app(scope, receive, send)
            return
        state: ServerState = scope["app"].state.server
        entry = scope["state"]["audit_entry"] = state.audit.open(
            self._origin(scope), self._trace_id()
        )

        # Not a coroutine of its own: it is called for every piece of a stream.
        def send_and_see(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                status: int = message["status"]
                # Nobody was there to be sent this one.
                entry.status = None if status == CLIENT_CLOSED_REQUEST else status
            return send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            if not entry.is_held:
                state.audit.close(entry)

    def _origin(self, scope: Scope) -> Origin:
        headers = Headers(scope=scope)
        return Origin(
            scope["state"]["request_id"],
            route_path(scope),
            _address(scope),
            session_of(headers),
            self._keys.id_of(headers),
            scope.get("server"),
        )


def _address(scope: Scope) -> str | None:
    """Return the client's address; None where there is none, or a proxy's header says something that is none."""
    host = scope["client"][0] if scope["client"] else ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return str(host)


def entry_of(scope: Scope) -> Entry | None:
    """Return the open entry of a request; None for those that leave no row."""
    entry: Entry | None = scope["state"].get("audit_entry")
    return entry


def _is_for_a_model(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    path = route_path(scope)
    cancels = path.startswith(STORED_RESPONSES) and path.endswith(CANCEL)
    return path.startswith(MODEL_API) and not cancels
