"""The seams: whatever answers a chat, and whatever wraps it, is a `ChatBackend`; for vectors, an `EmbeddingBackend`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from mlx_manager.chat.embeddings import EmbeddingRequest, Embeddings
from mlx_manager.chat.events import ChatEvent
from mlx_manager.chat.request import ChatRequest
from mlx_manager.chat.tokens import DetokenizeRequest, TokenizeRequest, Tokens


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


class Tokenizing(Protocol):
    """Turns text into token ids and back, with any model's tokenizer. Both raise an `MlxManagerError`."""

    async def tokenize(self, request: TokenizeRequest) -> Tokens:
        """Return the tokens of a text, or those that a conversation would be answered from."""
        ...

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """Return the text of token ids."""
        ...


class EmbeddingBackend(Protocol):
    """Makes vectors of texts: a local model, a cloud provider, a router over them, or a wrapper that watches one."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Return a vector for each input, in their order.

        Cancelling the task that waits here abandons the work at once. Raises an `MlxManagerError` when the request
        can't be taken or fails: all vectors or none.
        """
        ...
