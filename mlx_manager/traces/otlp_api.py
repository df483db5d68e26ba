"""`POST /otlp/v1/traces`: spans of other processes, into the same store as ours."""

from __future__ import annotations

import asyncio
import hmac
from ipaddress import IPv6Address, ip_address

from fastapi import APIRouter, Request
from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mlx_manager.errors import (
    Forbidden,
    MlxManagerError,
    Overloaded,
    Unauthorized,
    UnsupportedMediaType,
)
from mlx_manager.observability.otlp_import import failure, gunzip, read_spans, success
from mlx_manager.traces.api import current_store

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
RETRY_AFTER_S = 1

router = APIRouter(prefix="/otlp", tags=["Traces"])


@router.post("/v1/traces", response_model=None)
async def take_spans(request: Request) -> Response:
    """Take spans that an OpenTelemetry SDK or Collector exports, as Protobuf or JSON, gzipped or not."""
    try:
        return await _take(request)
    except MlxManagerError as error:
        return _refusal(request, error.status, error.message, error.retry_after_s)
    except HTTPException as error:
        return _refusal(request, error.status_code, error.detail)


async def _take(request: Request) -> Response:
    settings = request.app.state.server.settings
    _check_sender(request, settings.otlp_key)
    store = await current_store(request)
    _check_form(request)
    if not store.has_room_for_others:
        raise _full()
    is_json, is_gzip = _is_json(request), bool(request.headers.get("content-encoding"))
    body = await request.body()

    def store_them() -> bytes:
        whole = gunzip(body, settings.max_body_bytes) if is_gzip else body
        received = read_spans(whole, is_json=is_json)
        taken = store.put_others(received.spans)
        if received.spans and not taken:
            raise _full()
        return success(received.without(len(received.spans) - taken), is_json=is_json)

    # Reading a batch takes longer than the event loop has time.
    return Response(await asyncio.to_thread(store_them), media_type=_media_type(request))


def _full() -> Overloaded:
    return Overloaded(
        "Too many spans wait to be stored. Send these again a little later.",
        retry_after_s=RETRY_AFTER_S,
    )


def _check_sender(request: Request, key: SecretStr | None) -> None:
    if key is None:
        if request.client and not _is_loopback(request.client.host):
            raise Forbidden(
                "Spans are taken from this machine only. Set MLX_SERVER_OTLP_KEY, and send that key as a bearer token, "
                "to take them from others."
            )
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    offered = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    if not hmac.compare_digest(offered.encode(), key.get_secret_value().encode()):
        raise Unauthorized(
            "Spans are taken with a key only. Send the value of MLX_SERVER_OTLP_KEY as a bearer token or as x-api-key."
        )


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _check_form(request: Request) -> None:
    media_type = _content_type(request)
    if media_type not in (PROTOBUF, JSON):
        raise UnsupportedMediaType(
            f"The body is {media_type or 'of no type'}. Send {PROTOBUF} or {JSON} with that Content-Type."
        )
    encoding = request.headers.get("content-encoding", "gzip")
    if encoding.lower() != "gzip":
        raise UnsupportedMediaType(f"The body is encoded as {encoding}. Send it as gzip, or plain.")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_json(request: Request) -> bool:
    return _content_type(request) == JSON


def _media_type(request: Request) -> str:
    return JSON if _is_json(request) else PROTOBUF


def _refusal(
    request: Request, status: int, message: str, retry_after_s: int | None = None
) -> Response:
    """OTLP's own form of an error: exporters read no other."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    body = failure(message, is_json=_is_json(request))
    return Response(body, status_code=status, headers=headers, media_type=_media_type(request))
