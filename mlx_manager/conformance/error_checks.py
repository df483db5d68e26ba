"""How requests are refused, and what becomes of those whose client leaves."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import httpx

from mlx_manager.conformance.check import Check
from mlx_manager.conformance.recorded import PNG, RESPONSES
from mlx_manager.conformance.subject import (
    ANTHROPIC_HEADERS,
    CHAT,
    MESSAGES,
    NotApplicable,
    Subject,
    asking,
    error_of,
    events_of,
    expect,
    said,
)

JSON = {"content-type": "application/json"}
# More than a server is likely to take; `MLX_SERVER_MAX_BODY_BYTES` is a quarter of it unless it was raised.
MANY_MIB = 64
PATIENCE_S = 10.0


def check_error(response: httpx.Response, status: int, code: str | None = None) -> None:
    """Raise Broken unless this is an error of OpenAI's shape, with this status and code."""
    expect(response.status_code == status, said(response))
    error = error_of(response)
    expect(
        {"message", "type", "param", "code"} <= set(error), f"the error is {response.text[:200]}"
    )
    expect(code in (None, error["code"]), f"code is {error['code']!r}, not {code!r}")
    same = error.get("request_id") == response.headers.get("x-request-id")
    expect(same, "the error and the header name different requests")


def check_anthropic_error(response: httpx.Response, status: int, kind: str) -> None:
    """The same for Anthropic's shape and type of error."""
    expect(response.status_code == status, said(response))
    expect(response.json().get("type") == "error", f"the error is {response.text[:200]}")
    error = error_of(response)
    expect(error.get("type") == kind, f"type is {error.get('type')!r}, not {kind!r}")
    expect(isinstance(error.get("message"), str), "the error has no message")


async def unknown_model(subject: Subject) -> None:
    """A model that isn't there is a 404 of either API."""
    nobody = {"model": "nobody/nothing"}
    check_error(await subject.post(CHAT, asking("x", **nobody)), 404, "model_not_found")
    refused = await subject.post(MESSAGES, asking("x", **nobody), ANTHROPIC_HEADERS)
    check_anthropic_error(refused, 404, "not_found_error")


async def unknown_parameter(subject: Subject) -> None:
    """A parameter that nobody knows is refused by name."""
    refused = await subject.post(CHAT, asking("x", nonsense=1))
    check_error(refused, 400)
    expect(error_of(refused)["param"] == "nonsense", f"param is {error_of(refused)['param']!r}")
    refused = await subject.post(MESSAGES, asking("x", nonsense=1), ANTHROPIC_HEADERS)
    check_anthropic_error(refused, 400, "invalid_request_error")


async def wrong_type(subject: Subject) -> None:
    """A value of a wrong type is refused by the name of its field."""
    refused = await subject.post(CHAT, asking("x", temperature="hot"))
    check_error(refused, 400)
    expect(error_of(refused)["param"] == "temperature", "another field is named")
    refused = await subject.post(MESSAGES, asking("x", max_tokens="many"), ANTHROPIC_HEADERS)
    check_anthropic_error(refused, 400, "invalid_request_error")


async def bad_json(subject: Subject) -> None:
    """A body that is no JSON is a 400."""
    check_error(await subject.client.post(CHAT, content=b'{"model": ', headers=JSON), 400)
    headers = {**JSON, **ANTHROPIC_HEADERS}
    refused = await subject.client.post(MESSAGES, content=b'{"model": ', headers=headers)
    check_anthropic_error(refused, 400, "invalid_request_error")


async def oversized(subject: Subject) -> None:
    """A body without an end is a 413, and isn't read to it."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(MANY_MIB):
            yield b" " * 2**20

    try:
        refused = await subject.client.post(CHAT, content=pieces(), headers=JSON)
    except httpx.WriteError:
        raise NotApplicable("the connection was closed before the body's end") from None
    if refused.status_code == 400:
        raise NotApplicable(f"the server takes {MANY_MIB} MiB")
    check_error(refused, 413)


async def no_messages(subject: Subject) -> None:
    """A chat without messages is a 400."""
    check_error(await subject.post(CHAT, {"messages": []}), 400)
    refused = await subject.post(MESSAGES, {"messages": [], "max_tokens": 1}, ANTHROPIC_HEADERS)
    check_anthropic_error(refused, 400, "invalid_request_error")


async def hosted_tool(subject: Subject) -> None:
    """A tool that only OpenAI or Anthropic can run is refused, before any token, where a request is about it alone."""
    anthropic = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    refused = await subject.post(MESSAGES, asking("x", tools=[anthropic]), ANTHROPIC_HEADERS)
    check_anthropic_error(refused, 400, "invalid_request_error")
    expect("tools[0]" in error_of(refused)["message"], said(refused))
    codex = {"type": "web_search", "external_web_access": False}
    refused = await subject.post(RESPONSES, {"input": "x", "tools": [codex]})
    if refused.status_code == 404 and error_of(refused).get("code") == "not_found":
        raise NotApplicable("this server has no /v1/responses")
    check_error(refused, 400)
    expect(
        error_of(refused)["param"] == "tools[0].type", f"param is {error_of(refused)['param']!r}"
    )


async def user_image(subject: Subject) -> None:
    """A picture that the user shows to a model of text is refused where it stands, and not answered unseen."""
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    shown = [{"type": "text", "text": "What is this?"}, picture]
    refused = await subject.post(CHAT, asking("", messages=[{"role": "user", "content": shown}]))
    if refused.status_code == 200:
        raise NotApplicable("the server takes pictures")
    check_error(refused, 400)
    named = str(error_of(refused)["param"])
    expect(named.startswith("messages[0].content[1]"), f"param is {named!r}")


async def wrong_method(subject: Subject) -> None:
    """A path that has no GET says so."""
    check_error(await subject.client.get(CHAT), 405)


async def cancelled(subject: Subject) -> str | None:
    """A client that leaves ends its work: the server has it as cancelled, and answers the next one."""
    request_id = f"conformance-{uuid.uuid4().hex}"
    body = asking("Count.", model=subject.model, max_tokens=100_000, ignore_eos=True, stream=True)
    headers = {"x-request-id": request_id}
    async with subject.client.stream("POST", CHAT, json=body, headers=headers) as response:
        expect(response.status_code == 200, f"status {response.status_code}")
        async for _ in events_of(response):
            break
    await subject.chat("Hello", max_tokens=1)
    return await _outcome(subject, request_id)


async def _outcome(subject: Subject, request_id: str) -> str | None:
    """Ask the audit log, where there is one to ask."""
    for _ in range(int(PATIENCE_S / 0.1)):
        row = await subject.client.get(f"/api/requests/{request_id}")
        if row.status_code == 403 or error_of(row) or row.json().get("code") == "not_found":
            return "the next chat is answered; the audit log can't be asked here"
        outcome = row.json().get("outcome")
        if outcome not in (None, "running"):
            expect(outcome == "cancelled", f"the audit log says {outcome!r}")
            return None
        await asyncio.sleep(0.1)
    expect(False, f"it still runs after {PATIENCE_S:g} s")
    return None


ERROR_CHECKS = (
    Check("errors", "unknown model", unknown_model),
    Check("errors", "unknown parameter", unknown_parameter),
    Check("errors", "wrong type", wrong_type),
    Check("errors", "bad JSON", bad_json),
    Check("errors", "oversized", oversized),
    Check("errors", "no messages", no_messages),
    Check("errors", "hosted tool", hosted_tool),
    Check("errors", "a user's picture", user_image),
    Check("errors", "wrong method", wrong_method),
)
CANCEL_CHECKS = (Check("cancelling", "by leaving", cancelled),)
