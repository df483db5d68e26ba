"""Answer a chat with a model on this machine: the story of a request on one screen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from mlx_manager.chat.events import (
    ChatEvent,
    Finished,
    Interval,
    Started,
    Timeline,
)
from mlx_manager.chat.request import ChatRequest, Operation
from mlx_manager.errors import InvalidRequest, PromptTooLong, RequestTimeout
from mlx_manager.mlx_server.engine.messages import SamplingParameters
from mlx_manager.mlx_server.generation.answer import read_answer
from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text
from mlx_manager.mlx_server.generation.timing import record, recording
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.pool.pool import ModelPool
from mlx_manager.mlx_server.workers.stream import TokenStream

# Nobody sees the pieces of an answer that isn't streamed: it is read in long ones.
WHOLE_ANSWER_WAKE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """What goes to the engine for one request."""

    token_ids: list[int]
    max_tokens: int
    sampling: SamplingParameters


class LocalBackend:
    """A `ChatBackend` over the models of a pool."""

    def __init__(self, pool: ModelPool, time_limits_s: Mapping[Operation, float]) -> None:
        self._pool = pool
        self._time_limits_s = time_limits_s
        self._texts: dict[ModelFiles, asyncio.Task[ModelText]] = {}

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Answer `request`; see `ChatBackend`."""
        timeline, arrived_ns = Timeline(), time.time_ns()
        files = await self._pool.find(request.model)
        loading_text = self._load_text(files)
        async with self._pool.lease(files) as lease:
            text = await asyncio.shield(loading_text)
            if lease.was_loaded:
                timeline.model_load = Interval(arrived_ns, time.time_ns())
            prompt = await self._prepare(request, text, timeline)
            tokens = lease.engine.generate(
                prompt.token_ids,
                prompt.max_tokens,
                list(text.end_token_ids),
                prompt.sampling,
                wake_tokens=1 if request.stream or request.stop else WHOLE_ANSWER_WAKE_TOKENS,
            )
            answer = read_answer(tokens, text, request.stop, len(prompt.token_ids))
            async with tokens, aclosing(answer):
                with self._time_limit(request, tokens, arrived_ns), recording(tokens, timeline):
                    await tokens.admitted()
                    yield Started(files.id, timeline)
                    async for event in answer:
                        if isinstance(event, Finished):
                            # Who watches this stream closes its books on `Finished`, not on our end.
                            record(tokens, timeline)
                        yield event

    async def load(self, model_id: str) -> None:
        """Bring a model into memory before anybody asks for it. Raises what a request for it would raise."""
        files = await self._pool.find(model_id)
        loading_text = self._load_text(files)
        async with self._pool.lease(files):
            await asyncio.shield(loading_text)

    @contextmanager
    def _time_limit(
        self, request: ChatRequest, tokens: TokenStream, arrived_ns: int
    ) -> Iterator[None]:
        """End the sequence when its time is up, even when a slow reader keeps us from looking at the clock."""
        limit_s = self._time_limits_s[request.operation]
        error = RequestTimeout(
            f"The answer took longer than {limit_s:g} s, the limit of this endpoint. Ask for fewer tokens, or "
            f"have the administrator raise it (docs/settings.md)."
        )
        left_s = limit_s - (time.time_ns() - arrived_ns) / 1e9
        alarm = asyncio.get_running_loop().call_later(left_s, tokens.expire, error)
        try:
            yield
        finally:
            alarm.cancel()

    async def _prepare(self, request: ChatRequest, text: ModelText, timeline: Timeline) -> Prompt:
        start_ns = time.time_ns()
        prompt = await asyncio.to_thread(prepare, request, text)
        timeline.prompt_tokens = len(prompt.token_ids)
        timeline.queued_ns = time.time_ns()
        timeline.tokenize = Interval(start_ns, timeline.queued_ns)
        return prompt

    def _load_text(self, files: ModelFiles) -> asyncio.Task[ModelText]:
        """Return the load of the model's text side, which goes on beside the engine's; one for all who ask."""
        task = self._texts.get(files)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            self._forget_unloaded()
            task = self._texts[files] = asyncio.create_task(
                asyncio.to_thread(load_model_text, files)
            )
            # Retrieved here too: when the engine fails to load, nobody may come to await it.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def _forget_unloaded(self) -> None:
        resident = {resident.files for resident in self._pool.residents}
        self._texts = {files: task for files, task in self._texts.items() if files in resident}


def prepare(request: ChatRequest, text: ModelText) -> Prompt:
    """Render and encode a request. Raises PromptTooLong and InvalidRequest; runs in a thread."""
    token_ids = text.encode(request.input)
    if not token_ids:
        raise InvalidRequest("The prompt is empty. Send at least one token.", param="prompt")
    room = text.context_tokens - len(token_ids)
    if room < 1:
        raise PromptTooLong(
            f"The prompt has {len(token_ids)} tokens; {text.model_id} takes {text.context_tokens} with the "
            f"answer. Shorten it by {1 - room} or more.",
            param="messages" if request.operation == "chat" else "prompt",
        )
    max_tokens = min(request.max_tokens or room, room)
    return Prompt(token_ids, max_tokens, text.sampling_parameters(request.sampling))
