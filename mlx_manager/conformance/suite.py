"""Which checks there are, and which of them a model of its kind gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

from mlx_manager.conformance.anthropic_checks import MESSAGE_CHECKS
from mlx_manager.conformance.anthropic_sdk_checks import (
    ANTHROPIC_SDK_CHECKS,
    ANTHROPIC_SDK_COMMON_CHECKS,
)
from mlx_manager.conformance.capabilities import COMMON_CAPABILITIES, TEXT_CAPABILITIES
from mlx_manager.conformance.check import Capability, Check, Finding, run
from mlx_manager.conformance.clients import CLIENT_CHECKS
from mlx_manager.conformance.control_checks import CONTROL_CHECKS
from mlx_manager.conformance.error_checks import CANCEL_CHECKS, ERROR_CHECKS
from mlx_manager.conformance.openai_checks import COMMON_CHECKS, TEXT_CHECKS
from mlx_manager.conformance.openai_sdk_checks import (
    OPENAI_SDK_CHECKS,
    OPENAI_SDK_COMMON_CHECKS,
)
from mlx_manager.conformance.responses_checks import RESPONSES_CHECKS
from mlx_manager.conformance.subject import CHAT, Subject, asking, error_of

OF_TEXT: tuple[Check | Capability, ...] = (
    *TEXT_CHECKS,
    *CONTROL_CHECKS,
    *RESPONSES_CHECKS,
    *MESSAGE_CHECKS,
    *OPENAI_SDK_CHECKS,
    *ANTHROPIC_SDK_CHECKS,
    *CANCEL_CHECKS,
    *CLIENT_CHECKS,
    *TEXT_CAPABILITIES,
)
OF_ALL: tuple[Check | Capability, ...] = (
    *ERROR_CHECKS,
    *COMMON_CHECKS,
    *OPENAI_SDK_COMMON_CHECKS,
    *ANTHROPIC_SDK_COMMON_CHECKS,
    *COMMON_CAPABILITIES,
)
GROUPS = tuple(dict.fromkeys(one.group for one in (*OF_TEXT, *OF_ALL)))


async def findings(subject: Subject, groups: Collection[str] = GROUPS) -> AsyncIterator[Finding]:
    """Yield what every check of these groups finds that applies to this kind of model."""
    of_text = [one for one in OF_TEXT if one.group in groups]
    if of_text and await makes_text(subject):
        async for finding in run(subject, of_text):
            yield finding
    async for finding in run(subject, [one for one in OF_ALL if one.group in groups]):
        yield finding


async def makes_text(subject: Subject) -> bool:
    """Whether the model is one of chats: one of embeddings says that it isn't."""
    response = await subject.post(CHAT, asking("Hello", max_tokens=1))
    return error_of(response).get("code") != "wrong_model_kind"
