"""Text to token ids and back, with the tokenizer of any model on this machine and without its weights."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from mlx_manager.chat.request import Operation
from mlx_manager.chat.tokens import DetokenizeRequest, TokenizeRequest, Tokens
from mlx_manager.mlx_server.generation.deadline import Deadline
from mlx_manager.mlx_server.pool.kind import ModelKind
from mlx_manager.mlx_server.pool.pool import ModelPool

T = TypeVar("T")


class Side(Protocol):
    """The text side of a model, which may be slow."""

    def tokenize(self, request: TokenizeRequest) -> Tokens:
        """Return the tokens of a text or a conversation. Raises InvalidRequest."""
        ...

    def detokenize(self, request: DetokenizeRequest) -> str:
        """Return the text of token ids. Raises InvalidRequest for one that the model doesn't have."""
        ...


class LocalTokenizing:
    """A `Tokenizing` over the models of a pool; `sides` finds the text side of a model of each kind."""

    def __init__(
        self,
        pool: ModelPool,
        time_limits_s: Mapping[Operation, float],
        sides: Mapping[ModelKind, Callable[[str], Awaitable[Side]]],
    ) -> None:
        self._pool = pool
        self._time_limits_s = time_limits_s
        self._sides = sides

    async def tokenize(self, request: TokenizeRequest) -> Tokens:
        """Return the tokens; see `Tokenizing`."""
        return await self._asked(request.model, lambda side: side.tokenize(request))

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """Return the text; see `Tokenizing`."""
        return await self._asked(request.model, lambda side: side.detokenize(request))

    async def _asked(self, model: str, ask: Callable[[Side], T]) -> T:
        async with Deadline(self._time_limits_s["chat"]).kept():
            files = await self._pool.find(model)
            # A kind that has no side is none of chats: that is what the model is refused for.
            side = await self._sides.get(files.kind, self._sides["chat"])(model)
            return await asyncio.to_thread(ask, side)
