"""The clients that OpenAI and Anthropic publish, where they are installed, asking the server that is checked.

They hold each answer to their own types: a field that is missing or of another type is an error of theirs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from mlx_manager.conformance.check import Check, Way
from mlx_manager.conformance.subject import UNSUPPORTED, Broken, NotApplicable, Subject

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI

OPENAI: Way = "openai"
ANTHROPIC: Way = "anthropic"
AskOpenai = Callable[["AsyncOpenAI", str], Awaitable[str | None]]
AskAnthropic = Callable[["AsyncAnthropic", str], Awaitable[str | None]]


class Place(BaseModel):
    """What `PLACE_SCHEMA` says, as a program asks for it."""

    city: Literal["Bern", "Oslo"]
    is_capital: bool


def openai_check(group: str, name: str, ask: AskOpenai) -> Check:
    """A check that goes through OpenAI's client; `ask` gets that and the model's id."""
    return Check(group, name, partial(_ask_openai, ask), OPENAI)


def anthropic_check(group: str, name: str, ask: AskAnthropic) -> Check:
    """The same for Anthropic's."""
    return Check(group, name, partial(_ask_anthropic, ask), ANTHROPIC)


def imported(package: str) -> ModuleType:
    """Return a client's package, which takes a second to import. Raises NotApplicable where it isn't installed."""
    try:
        return import_module(package)
    except ImportError:
        raise NotApplicable(
            f"{package} is not installed: pip install 'mlx-manager[cloud]'"
        ) from None


async def _ask_openai(ask: AskOpenai, subject: Subject) -> str | None:
    sdk = imported(OPENAI)
    client = sdk.AsyncOpenAI(base_url=f"{subject.url}/v1", **_asking(subject))
    async with client, _told(sdk):
        return await ask(client, subject.model)


async def _ask_anthropic(ask: AskAnthropic, subject: Subject) -> str | None:
    sdk = imported(ANTHROPIC)
    client = sdk.AsyncAnthropic(base_url=subject.url, **_asking(subject))
    async with client, _told(sdk):
        return await ask(client, subject.model)


def _asking(subject: Subject) -> dict[str, Any]:
    """Return what both clients are told: a failure is to be seen, and so is a field of another type."""
    return {
        "api_key": subject.key,
        "timeout": subject.timeout_s,
        "max_retries": 0,
        "_strict_response_validation": True,
    }


@asynccontextmanager
async def _told(sdk: ModuleType) -> AsyncIterator[None]:
    """Tell what the client makes of an answer that isn't as it wants it in the words of the checks."""
    of_any_kind = sdk.OpenAIError if sdk.__name__ == OPENAI else sdk.AnthropicError
    try:
        yield
    except of_any_kind as error:
        is_refused = isinstance(error, sdk.BadRequestError)
        # Anthropic's errors have no code; what isn't supported says so.
        if is_refused and (
            getattr(error, "code", "") == UNSUPPORTED or "not support" in str(error)
        ):
            raise NotApplicable(str(error)) from None
        raise Broken(f"{type(error).__name__}: {error}") from None
