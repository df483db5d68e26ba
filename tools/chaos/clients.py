"""Clients as people have them, and what each of them heard."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import anthropic
import httpx
import openai

from tools.chaos.books import Fate
from tools.chaos.server import MODEL, Server

REQUEST_ID = "X-Request-ID"
TIMEOUT_S = 180.0


@dataclass(slots=True)
class Heard:
    """One answer as far as it came; `text` and `tokens` of what came, `code` of the error that ended it."""

    text: str = ""
    tokens: int = 0
    is_whole: bool = False
    code: str | None = None
    status: int | None = None
    retry_after: str | None = None
    request_id: str = field(default_factory=lambda: uuid4().hex)

    @property
    def fate(self) -> Fate:
        """`refused`: at once, and with the time to come again; `told`: a clear error; `lost`: neither."""
        if self.is_whole:
            return "whole"
        if self.status in (429, 503) and self.retry_after is not None:
            return "refused"
        return "told" if self.code else "lost"


@dataclass(frozen=True, slots=True)
class Clients:
    """One of each API."""

    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic


async def hear(clients: Clients, number: int, max_tokens: int) -> Heard:
    """Ask the `number`th question: streamed and whole, of both APIs, greedily and with a seed, by turns."""
    heard = Heard()
    try:
        if number % 4 == 3:
            await _anthropic(clients.anthropic, number, max_tokens, heard)
        else:
            await _openai(clients.openai, number, max_tokens, heard)
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        heard.status = error.status_code
        heard.retry_after = error.response.headers.get("Retry-After")
        heard.code = _code(error.body)
    except openai.APIError as error:
        heard.code = error.code or _code(error.body)
    except anthropic.APIError as error:
        heard.code = _code(error.body)
    except TypeError:
        raise
    except Exception:  # noqa: BLE001 - whatever a broken connection becomes: the answer is lost
        heard.code = None
    return heard


async def crowd(server: Server, count: int, max_tokens: int) -> list[Heard]:
    """Ask the first `count` questions at once, and note in `server` what became of them."""
    # Both retry by themselves otherwise, and what is to be seen is what the server says.
    options: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": TIMEOUT_S}
    async with (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", **options) as of_openai,
        anthropic.AsyncAnthropic(base_url=server.url, **options) as of_anthropic,
    ):
        clients = Clients(of_openai, of_anthropic)
        asking = (hear(clients, number, max_tokens) for number in range(count))
        heard = list(await asyncio.gather(*asking))
    server.fates |= {one.request_id: one.fate for one in heard}
    return heard


async def complete(server: Server, prompt: list[int], max_tokens: int) -> httpx.Response:
    """Send one prompt beside the others', note in `server` what became of it, and return the answer."""
    body, request_id = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens}, uuid4().hex
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S) as http:
        answer = await http.post("/v1/completions", json=body, headers={REQUEST_ID: request_id})
    server.fates[request_id] = "whole" if answer.is_success else "refused"
    return answer


async def _openai(client: openai.AsyncOpenAI, number: int, max_tokens: int, heard: Heard) -> None:
    drawn: dict[str, Any] = {"temperature": 1, "seed": number} if number % 2 else {"temperature": 0}
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Question {number}"}],
        "max_tokens": max_tokens,
        "extra_body": {"ignore_eos": True},
        "extra_headers": {REQUEST_ID: heard.request_id},
    }
    if number % 4 == 2:
        answer = await client.chat.completions.create(**asked, **drawn)
        heard.text = answer.choices[0].message.content or ""
        heard.tokens = answer.usage.completion_tokens if answer.usage else 0
        heard.is_whole = True
        return
    stream = await client.chat.completions.create(
        **asked, **drawn, stream_options={"include_usage": True}, stream=True
    )
    async for chunk in stream:
        heard.text += "".join(choice.delta.content or "" for choice in chunk.choices)
        if chunk.usage:
            heard.tokens, heard.is_whole = chunk.usage.completion_tokens, True


async def _anthropic(
    client: anthropic.AsyncAnthropic, number: int, max_tokens: int, heard: Heard
) -> None:
    stream = await client.messages.create(
        model=MODEL,
        messages=[{"role": "user", "content": f"Question {number}"}],
        max_tokens=max_tokens,
        extra_body={"temperature": 0},
        extra_headers={REQUEST_ID: heard.request_id},
        stream=True,
    )
    async for event in stream:
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            heard.text += event.delta.text
        elif event.type == "message_delta":
            heard.tokens = event.usage.output_tokens
        elif event.type == "message_stop":
            heard.is_whole = True


def _code(body: object) -> str | None:
    """Return an error's code, or its type where the API has no codes."""
    if not isinstance(body, dict):
        return None
    error = body.get("error", body)
    found = error.get("code") or error.get("type") if isinstance(error, dict) else None
    return found if isinstance(found, str) else None
