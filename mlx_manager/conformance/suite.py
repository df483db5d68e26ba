"""Which checks there are, and which of them a model of its kind gets."""

from __future__ import annotations

from collections.abc import AsyncIterator

from mlx_manager.conformance.anthropic_checks import MESSAGE_CHECKS
from mlx_manager.conformance.capabilities import COMMON_CAPABILITIES, TEXT_CAPABILITIES
from mlx_manager.conformance.check import Capability, Check, Finding, run
from mlx_manager.conformance.clients import CLIENT_CHECKS
from mlx_manager.conformance.error_checks import CANCEL_CHECKS, ERROR_CHECKS
from mlx_manager.conformance.openai_checks import COMMON_CHECKS, TEXT_CHECKS
from mlx_manager.conformance.subject import CHAT, Subject, asking, error_of

OF_TEXT: tuple[Check | Capability, ...] = (
    *TEXT_CHECKS,
    *MESSAGE_CHECKS,
    *CANCEL_CHECKS,
    *CLIENT_CHECKS,
    *TEXT_CAPABILITIES,
)
OF_ALL: tuple[Check | Capability, ...] = (*ERROR_CHECKS, *COMMON_CHECKS, *COMMON_CAPABILITIES)


async def findings(subject: Subject) -> AsyncIterator[Finding]:
    """Yield what every check finds that applies to this kind of model."""
    if await makes_text(subject):
        async for finding in run(subject, OF_TEXT):
            yield finding
    async for finding in run(subject, OF_ALL):
        yield finding


async def makes_text(subject: Subject) -> bool:
    """Whether the model is one of chats: one of embeddings says that it isn't."""
    response = await subject.post(CHAT, asking("Hello", max_tokens=1))
    return error_of(response).get("code") != "wrong_model_kind"
