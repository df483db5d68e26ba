"""Watch backends answer, and note in the audit log what it does for each request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from mlx_manager.chat.backend import ChatBackend, EmbeddingBackend
from mlx_manager.chat.embeddings import EmbeddingRequest, Embeddings
from mlx_manager.chat.events import ChatEvent, Finished, Started, Usage
from mlx_manager.chat.request import ChatRequest, Origin
from mlx_manager.errors import MlxManagerError
from mlx_manager.mlx_server.audit.entry import Entry


class AuditedBackend:
    """Answers as `backend` does, and notes its work in the entry that `entry_of` finds for a request.

    Whoever took the request in has opened that entry and closes it, so that those which never come
    here have one as well. `name` is what the log calls the backend.
    """

    def __init__(
        self, backend: ChatBackend, entry_of: Callable[[Origin], Entry], *, name: str
    ) -> None:
        self._backend = backend
        self._entry_of = entry_of
        self._name = name

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Answer `request`, watched."""
        entry = self._entry_of(request.origin)
        entry.asked(request.model, request.stream)
        entry.backend, entry.timeline = self._name, request.timeline
        try:
            async with aclosing(self._backend.stream(request)) as events:
                async for event in events:
                    if isinstance(event, (Started, Finished)):
                        entry.see(event)
                    yield event
        except BaseException as error:
            _note_end(entry, error)
            raise


class AuditedEmbeddings:
    """The same for a backend that makes embeddings."""

    def __init__(
        self, backend: EmbeddingBackend, entry_of: Callable[[Origin], Entry], *, name: str
    ) -> None:
        self._backend = backend
        self._entry_of = entry_of
        self._name = name

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Answer `request`, watched."""
        entry, timeline = self._entry_of(request.origin), request.timeline
        entry.asked(request.model, False)
        entry.backend = self._name
        try:
            answer = await self._backend.embed(request)
        except BaseException as error:
            if timeline.route is not None and timeline.admitted_ns is not None:
                entry.see(Started(timeline.route.model, timeline))
            _note_end(entry, error)
            raise
        entry.see(Started(answer.model, timeline))
        entry.complete(Usage(answer.input_tokens, 0))
        return answer


def _note_end(entry: Entry, error: BaseException) -> None:
    if isinstance(error, (GeneratorExit, asyncio.CancelledError)):
        entry.cancel()
        return
    drawn = error if isinstance(error, MlxManagerError) else MlxManagerError
    entry.fail(drawn.code, drawn.status)
