"""A check, what it found, and how all of them are run one after the other."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import httpx

from mlx_manager.capability_card import CardResult
from mlx_manager.conformance.subject import Broken, NotApplicable, Subject

# `pass` and `fail` are the server's, `yes` and `no` the model's; `n/a` is neither's.
Result = CardResult
# How the server is asked: over plain HTTP, or by the client that is published for its API.
Way = Literal["HTTP", "openai", "anthropic"]
HTTP: Way = "HTTP"
Ask = Callable[[Subject], Awaitable[str | None]]
AskModel = Callable[[Subject], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Check:
    """A rule for the server: `ask` returns a note, or raises Broken or NotApplicable."""

    group: str
    name: str
    ask: Ask
    way: Way = HTTP


@dataclass(frozen=True, slots=True)
class Capability:
    """A question about the model: `ask` returns yes or no, or raises NotApplicable."""

    group: str
    name: str
    ask: AskModel


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, after how many seconds; `note` is empty when there is nothing to say."""

    group: str
    name: str
    result: Result
    duration_s: float
    note: str = ""
    way: Way = HTTP

    @property
    def is_capability(self) -> bool:
        return self.group == "model"


async def run(subject: Subject, checks: Iterable[Check | Capability]) -> AsyncIterator[Finding]:
    """Yield what each check finds. A check that can't be carried out is a failure, never an exception."""
    for check in checks:
        start_s = time.monotonic()
        result, note = await _result(subject, check)
        way = check.way if isinstance(check, Check) else HTTP
        yield Finding(check.group, check.name, result, time.monotonic() - start_s, note, way)


async def _result(subject: Subject, check: Check | Capability) -> tuple[Result, str]:
    try:
        if isinstance(check, Capability):
            return ("yes" if await check.ask(subject) else "no"), ""
        return "pass", await check.ask(subject) or ""
    except NotApplicable as reason:
        return "n/a", str(reason)
    except Broken as broken:
        # A refusal says nothing of what the model can do, and the server's own checks tell of it.
        return ("n/a" if isinstance(check, Capability) else "fail"), str(broken)
    except httpx.HTTPError as error:
        return "fail", f"no answer: {type(error).__name__} {error}".strip()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return "fail", f"an answer of another shape: {type(error).__name__} {error}"
