"""The tokens of one sequence, as the API process receives them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mlx_manager.chat.events import TraceContext
from mlx_manager.errors import EngineFailed, GenerationFailed, InvalidRequest, MlxManagerError
from mlx_manager.mlx_server.engine.messages import Ended, Logprobs


class TokenStream:
    """Iterates over lists of token ids: all that came since the reader last looked.

    It has one reader, woken at the first token, at the end, and in between by `wake_reader`, for `wake_tokens` tokens
    at a time. One that is slow gets longer lists, so nothing queues up per token. After the last list `ended` holds the
    engine's record. Leaving the `async with` before the end cancels the sequence. `owner` is whom it works for, `ahead`
    the owners of those who had the places when it came. `logprobs` are those of the tokens in the list that was last
    given out, when they were asked for.
    """

    def __init__(
        self,
        sequence_id: int,
        abandon: Callable[[TokenStream], None],
        wake_tokens: int = 1,
        owner: TraceContext | None = None,
        ahead: tuple[TraceContext, ...] = (),
    ) -> None:
        self.sequence_id = sequence_id
        self.owner = owner
        self._ahead = ahead
        self._has_waited = True
        self.ended: Ended | None = None
        self.admitted_at_ns: int | None = None
        self.first_token_at_ns: int | None = None
        self.received_tokens = 0
        self.cached_tokens = 0
        self.logprobs: list[Logprobs] = []
        self._abandon = abandon
        self._wake_tokens = wake_tokens
        self._is_abandoned = False
        self._tokens: list[int] = []
        self._logprobs: list[Logprobs] = []
        self._error: MlxManagerError | None = None
        self._news: asyncio.Future[None] | None = None

    async def __aenter__(self) -> TokenStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the sequence up unless it has ended; its row is free with the engine's next step."""
        if self.ended is None and self._error is None and not self._is_abandoned:
            self._is_abandoned = True
            self._abandon(self)

    async def close_and_wait(self) -> None:
        """Give the rest up and wait, a step at most, for the engine's record of what was made."""
        self.close()
        while self.ended is None and self._error is None:
            await self._next_news()

    async def admitted(self) -> None:
        """Wait until the engine has taken the sequence into its batch. Raises what ended it before that."""
        while self.admitted_at_ns is None and self.ended is None:
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

    @property
    def waited_behind(self) -> tuple[TraceContext, ...]:
        """The owners of those for whose places it waits or has waited; none when it was admitted at once."""
        return self._ahead if self._has_waited else ()

    def feed_admitted(self, at_ns: int, has_waited: bool, cached_tokens: int = 0) -> None:
        """The engine has taken the sequence into its batch, at once or after others had left."""
        self.admitted_at_ns = at_ns
        self.cached_tokens = cached_tokens
        self._has_waited = has_waited
        self._wake()

    def feed(self, token_id: int, at_ns: int) -> None:
        """One more token."""
        self.received_tokens += 1
        self._tokens.append(token_id)
        if self.first_token_at_ns is None:
            self.first_token_at_ns = at_ns
            self.wake_reader()

    def wake_reader(self) -> None:
        """Let the reader have what has come, if that is enough for it."""
        if len(self._tokens) >= self._wake_tokens:
            self._wake()

    def feed_logprobs(self, logprobs: Logprobs) -> None:
        """Those of a token of the same step; both come before the reader can look."""
        self._logprobs.append(logprobs)

    def feed_end(self, ended: Ended) -> None:
        """The sequence has left the engine."""
        self.ended = ended
        self._wake()

    def fail(self, error: MlxManagerError) -> None:
        """The engine process is gone; nothing more will come."""
        self._error = error
        self._wake()

    def expire(self, error: MlxManagerError) -> None:
        """Give the sequence up, whether or not anybody is reading, and let the reader meet `error`."""
        if self.ended is None and self._error is None:
            self.close()
            self.fail(error)

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _wait(self) -> None:
        self._raise_failure()
        await self._next_news()

    async def _next_news(self) -> None:
        self._news = asyncio.get_running_loop().create_future()
        await self._news

    def _raise_failure(self) -> None:
        if self._error is not None:
            raise self._error
        if self.ended is not None:
            _raise_failure_of(self.ended)


def _raise_failure_of(ended: Ended) -> None:
    if ended.reason == "refused":
        raise InvalidRequest(f"{ended.param!r} can't be kept to: {ended.detail}", param=ended.param)
    if ended.reason == "failed":
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
