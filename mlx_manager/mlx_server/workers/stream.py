"""The tokens of one sequence, as the API process receives them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from mlx_manager.chat.events import TraceContext
from mlx_manager.errors import EngineFailed, GenerationFailed, InvalidRequest
from mlx_manager.mlx_server.engine.messages import Ended, Logprobs, Submit
from mlx_manager.mlx_server.workers.resume import Resumable


class TokenStream(Resumable[Submit]):
    """Iterates over lists of token ids: all that came since the reader last looked.

    It has one reader, woken at the first token, at the end, and in between by `wake_reader`, for `wake_tokens` tokens
    at a time. One that is slow gets longer lists, so nothing queues up per token. After the last list `ended` holds the
    engine's record, of its own part when the answer was begun by another process. Leaving the `async with` before the
    end cancels the sequence. `logprobs` are those of the tokens in the list that was last given out, when they were
    asked for; `prompt_logprobs` those of the prompt's tokens after the first, as far as they came. `siblings` are the
    streams of those that go on from the same prompt.
    """

    def __init__(
        self,
        submit: Submit,
        abandon: Callable[[Resumable[Submit]], None],
        wake_tokens: int = 1,
        owner: TraceContext | None = None,
        ahead: tuple[TraceContext, ...] = (),
    ) -> None:
        super().__init__(submit, abandon, owner, ahead)
        self.ended: Ended | None = None
        self.admitted_at_ns: int | None = None
        self.first_token_at_ns: int | None = None
        self.cached_tokens = 0
        self.followed: list[TraceContext] = []
        self.logprobs: list[Logprobs] = []
        self.prompt_logprobs: list[Logprobs] = []
        self.siblings = tuple(
            TokenStream(submit.of(one), abandon, wake_tokens, owner, ahead)
            for one in submit.siblings
        )
        for sibling in self.siblings:
            sibling.prompt_logprobs = self.prompt_logprobs
        self._wake_tokens = wake_tokens
        self._made: list[int] = []
        self._awaits_token = True
        self._tokens: list[int] = []
        self._logprobs: list[Logprobs] = []
        self._waiting: asyncio.Future[None] | None = None

    async def __aenter__(self) -> TokenStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.ended is not None or self._error is not None

    @property
    def received_tokens(self) -> int:
        """How many tokens the answer has by now."""
        return len(self._made)

    async def close_and_wait(self) -> None:
        """Give the rest up and wait, a step at most, for the engine's record of what was made."""
        self.close()
        while not self.is_over:
            await self._next_news()

    async def admitted(self) -> None:
        """Wait until the engine has taken the sequence into its batch. Raises what ended it before that."""
        while self.admitted_at_ns is None and self.ended is None:
            await self._wait()
        self._raise_failure()

    async def prompt_read(self) -> None:
        """Wait until all of the prompt is read and `prompt_logprobs` are complete. Raises what ended it before."""
        while not self.received_tokens and self.ended is None:
            await self._wait()
        self._raise_failure()

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> list[int]:
        while len(self._tokens) < self._wake_tokens:
            if self.ended is None:
                await self._wait()
            elif self._tokens:
                break
            else:
                self._raise_failure()
                raise StopAsyncIteration
        tokens, self._tokens = self._tokens, []
        self.logprobs, self._logprobs = self._logprobs, []
        return tokens

    def feed_admitted(self, at_ns: int, has_waited: bool, cached_tokens: int = 0) -> None:
        """The engine has taken the sequence into its batch, at once or after others had left."""
        if self.admitted_at_ns is not None:
            return  # by a fresh process: that is part of going on
        self.admitted_at_ns = at_ns
        self.cached_tokens = cached_tokens
        self._has_waited = has_waited
        self._news()

    def feed_following(self, leader: TraceContext | None) -> None:
        """The sequence waits for that of `leader` to read what both begin with. Its own request is none to tell of."""
        if leader is not None and leader != self.owner:
            self.followed.append(leader)

    def feed(self, token_id: int, at_ns: int) -> None:
        """One more token."""
        self._made.append(token_id)
        self._tokens.append(token_id)
        if self._awaits_token:
            self._first(at_ns)

    def _first(self, at_ns: int) -> None:
        """The first token that a process has made for it."""
        self._awaits_token = False
        if self.first_token_at_ns is None:
            self.first_token_at_ns = at_ns
        self.wake_reader()
        self._went_on(at_ns)

    def wake_reader(self) -> None:
        """Let the reader have what has come, if that is enough for it."""
        if len(self._tokens) >= self._wake_tokens:
            self._news()

    def feed_logprobs(self, logprobs: Logprobs) -> None:
        """Those of a token of the same step; both come before the reader can look."""
        self._logprobs.append(logprobs)

    def feed_end(self, ended: Ended) -> None:
        """The sequence has left the engine."""
        self.ended = ended
        self._news()
        self._went_on(time.monotonic_ns())

    @property
    def _made_tokens(self) -> int:
        return len(self._made)

    def _rest(self) -> Submit:
        self._awaits_token = True
        scores_prompt = self.work.scores_prompt and not self._is_scored
        if scores_prompt:
            self.prompt_logprobs.clear()
        rest: Submit = msgspec.structs.replace(
            self.work,
            made_token_ids=self._made,
            siblings=[],
            scores_prompt=scores_prompt,
            attempts=self.attempts,
        )
        return rest

    @property
    def _is_scored(self) -> bool:
        """Whether all of the prompt's tokens but the first have come with their log-probabilities."""
        return len(self.prompt_logprobs) == len(self.work.token_ids) - 1

    def _news(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _wait(self) -> None:
        self._raise_failure()
        await self._next_news()

    async def _next_news(self) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        await self._waiting

    def _raise_failure(self) -> None:
        if self._error is not None:
            raise self._error
        if self.ended is not None:
            _raise_failure_of(self.ended)


def _raise_failure_of(ended: Ended) -> None:
    if ended.reason == "refused":
        raise InvalidRequest(f"{ended.param!r} can't be kept to: {ended.detail}", param=ended.param)
    if ended.reason in ("failed", "lost"):
        raise GenerationFailed(
            f"The engine could not compute this request ({ended.detail}). Other requests are not "
            "affected; the server's log has the details."
        )


def engine_ended(model_id: str, how: str) -> EngineFailed:
    """Return the error that a request gets when its engine process goes away under it."""
    return EngineFailed(
        f"The engine process of {model_id} {how} while it worked on this request. "
        "A fresh one is started; send the request again.",
        retry_after_s=1,
    )
