"""Let only those with a key call the model API, where the settings name keys."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_manager.errors import InvalidApiKey, MlxManagerError
from mlx_manager.mlx_server.audit.entry import OPERATIONS
from mlx_manager.observability.authentication import note_authentication, note_refused
from mlx_manager.observability.paths import route_path

MODEL_API = "/v1/"
# Those without a parameter, which might be anything. A refused request is never matched against the routes.
PLAIN_ROUTES = frozenset({*OPERATIONS, "/v1/models", "/v1/messages/count_tokens"})


class ApiKeys:
    """The keys that may call, and the ids that they are known by. None at all: anybody may."""

    def __init__(self, keys: Mapping[str, SecretStr]) -> None:
        # Looked up by digest: the time that takes says nothing about how much of a key was right.
        self._ids = {_digest(key.get_secret_value()): key_id for key_id, key in keys.items()}

    @property
    def are_needed(self) -> bool:
        """Whether a request must bring one."""
        return bool(self._ids)

    def id_of(self, headers: Headers) -> str | None:
        """The id of the key that a request brings, as a bearer token or as `x-api-key`; None when it is no key here."""
        if not self._ids:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        offered = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return self._ids.get(_digest(offered))


class ApiKeyMiddleware:
    """Answers 401 below `/v1` before anything of a body is read. `to_response` draws the error."""

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        to_response: Callable[[Request, MlxManagerError], Response],
    ) -> None:
        self._app = app
        self._keys = keys
        self._to_response = to_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if not self._keys.are_needed or not _is_model_api(scope):
            await self._app(scope, receive, send)
            return
        start_ns = time.time_ns()
        key_id = self._keys.id_of(Headers(scope=scope))
        note_authentication(key_id, start_ns, time.time_ns())
        if key_id is not None:
            scope["state"]["key_id"] = key_id
            await self._app(scope, receive, send)
            return
        if route_path(scope) in PLAIN_ROUTES:
            note_refused(scope["method"], scope["path"])
        response = self._to_response(Request(scope), _refusal(scope))
        response.headers["WWW-Authenticate"] = "Bearer"
        await response(scope, receive, send)


def _is_model_api(scope: Scope) -> bool:
    return scope["type"] == "http" and f"{route_path(scope)}/".startswith(MODEL_API)


def _refusal(scope: Scope) -> InvalidApiKey:
    has_one = {b"authorization", b"x-api-key"} & {name for name, _ in scope["headers"]}
    return InvalidApiKey(
        f"{'The API key is not one of this server' if has_one else 'This server takes requests with an API key only'}. "
        "Send one that its administrator has set in MLX_SERVER_API_KEYS, as `Authorization: Bearer KEY` or as "
        "`x-api-key: KEY`."
    )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
