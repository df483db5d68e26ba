"""The one seam: whatever answers a chat, and whatever wraps it, is a `ChatBackend`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from mlx_manager.chat.events import ChatEvent
from mlx_manager.chat.request import ChatRequest


class ChatBackend(Protocol):
    """Answers chats: the local engine, a cloud provider, a router over them, or a wrapper that watches one."""

    def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Answer `request`: `Started` first, then text, then `Finished`.

        Closing the generator (`aclose`, or cancelling the task that reads it) abandons the work at once and frees its
        place. Raises an `MlxManagerError` before `Started` when the request can't be taken, after it when it fails.
        """
        ...


class TokenCounter(Protocol):
    """Knows how many tokens a prompt has without answering it."""

    async def count_tokens(self, request: ChatRequest) -> int:
        """Return the tokens of `request`'s prompt as answering it would count them.

        Raises an `MlxManagerError` when there is no such model, or it can't take the prompt.
        """
        ...
