"""Clients as people have them, and what each of them heard."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import anthropic
import openai

from tools.chaos.server import MODEL

Fate = Literal["whole", "refused", "told", "lost"]
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


async def crowd(url: str, count: int, max_tokens: int) -> list[Heard]:
    """Ask the first `count` questions at once."""
    # Both retry by themselves otherwise, and what is to be seen is what the server says.
    options: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": TIMEOUT_S}
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", **options) as of_openai,
        anthropic.AsyncAnthropic(base_url=url, **options) as of_anthropic,
    ):
        clients = Clients(of_openai, of_anthropic)
        asking = (hear(clients, number, max_tokens) for number in range(count))
        return list(await asyncio.gather(*asking))


async def _openai(client: openai.AsyncOpenAI, number: int, max_tokens: int, heard: Heard) -> None:
    drawn: dict[str, Any] = {"temperature": 1, "seed": number} if number % 2 else {"temperature": 0}
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Question {number}"}],
        "max_tokens": max_tokens,
        "extra_body": {"ignore_eos": True},
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
