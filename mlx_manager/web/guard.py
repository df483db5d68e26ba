"""Keep pages and administration to this machine until there are accounts, and keep other sites' scripts out.

A page on the Internet can point its own name at 127.0.0.1 (DNS rebinding): the browser then lets its script read
what this server answers, so a request that calls the server by a name it doesn't have is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_manager.errors import LocalOnly, MlxManagerError, WrongHost
from mlx_manager.mlx_server.api.callers import host_name, is_loopback
from mlx_manager.observability.paths import route_path
from mlx_manager.web.problem import problem_response

# What has rules of its own, or gives nothing away. All else is closed unless it is named here.
OPEN_PATHS = frozenset({"/health", "/api/health", "/api/version", "/openapi.json", "/metrics"})
OPEN_PREFIXES = ("/v1/", "/otlp/", "/static/")
ADMIN_PREFIX = "/admin/"


class GuardMiddleware:
    """Answers 403 to clients elsewhere, unless `is_open`, and to names other than this machine's and `names`.

    Administration is for those, too, whom `admits` knows: they have its key.
    """

    def __init__(
        self,
        app: ASGIApp,
        is_open: bool,
        names: Collection[str],
        admits: Callable[[Request], bool],
    ) -> None:
        self._app = app
        self._admits = admits
        self._is_open = is_open
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "http" and not _is_public(route_path(scope)):
            request = Request(scope)
            refusal = self._refusal(request)
            if refusal is not None:
                await problem_response(request, refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, request: Request) -> MlxManagerError | None:
        if route_path(request.scope).startswith(ADMIN_PREFIX) and self._admits(request):
            return None
        client = request.client.host if request.client else ""
        if not (self._is_open or is_loopback(client)):
            return LocalOnly(
                "The pages and the administration answer only to this machine, because there are no accounts yet. "
                "Open them on the machine itself (or through an SSH tunnel), or set MLX_MANAGER_OPEN_UI=true to let "
                "everybody in who can reach the port."
            )
        name = host_name(request.headers.get("host", ""))
        if not self._is_own(name):
            return WrongHost(
                f"This server does not go by the name {name[:80]!r}. Use localhost or its address, or add the name "
                "to MLX_MANAGER_HOST_NAMES."
            )
        return None

    def _is_own(self, name: str) -> bool:
        if name in self._names or is_loopback(name):
            return True
        # No name, nothing to rebind: an address is only ever itself.
        return self._is_open and _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_public(path: str) -> bool:
    return path in OPEN_PATHS or f"{path}/".startswith(OPEN_PREFIXES)
