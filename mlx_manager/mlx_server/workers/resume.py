"""What a request keeps so that an engine process can go on with it when another has ended, or has lost it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from mlx_manager.chat.events import TraceContext
from mlx_manager.errors import MlxManagerError
from mlx_manager.mlx_server.engine.messages import Embed, Submit

Work = TypeVar("Work", Submit, Embed)
# How often a request may be given to an engine process again, whatever it has done in between.
MOST_RESUMPTIONS = 16


@dataclass(slots=True)
class Resumption:
    """A request lost its engine process, or its place in it, as `how` says, and waits, or goes on.

    It had `after_token` tokens and was given to a process `attempts` times until it went on at `resumed_ns`; None as
    long as it hasn't. Times are monotonic, in nanoseconds.
    """

    lost_ns: int
    after_token: int
    how: str
    attempts: int = 0
    resumed_ns: int | None = None


class Resumable(Generic[Work]):
    """The side of a request that outlives its engine process: the work itself, and how often it was lost.

    `owner` is whom it works for, `ahead` the owners of those who had the places when it came. `abandon` tells the
    engine that nobody wants the rest.
    """

    def __init__(
        self,
        work: Work,
        abandon: Callable[[Resumable[Work]], None],
        owner: TraceContext | None,
        ahead: tuple[TraceContext, ...],
    ) -> None:
        self.work: Work = work
        self.sequence_id = work.sequence_id
        self.owner = owner
        self.resumptions: list[Resumption] = []
        self.on_progress: Callable[[Resumable[Work]], None] | None = None
        self._ahead = ahead
        self._has_waited = True
        self._abandon: Callable[[Resumable[Work]], None] = abandon
        self._is_abandoned = False
        self._error: MlxManagerError | None = None

    @property
    def waited_behind(self) -> tuple[TraceContext, ...]:
        """The owners of those for whose places it waits or has waited; none when it was admitted at once."""
        return self._ahead if self._has_waited else ()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        raise NotImplementedError

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for the rest."""
        return not (self.is_over or self._is_abandoned)

    @property
    def attempts(self) -> int:
        """How often in a row it was given to a process again that lost it before it went on."""
        last = self._open_resumption
        return last.attempts if last else 0

    def may_resume(self, most_attempts: int) -> bool:
        """Whether it may be given to a process again: not when it is lost each time at the same place."""
        total = sum(one.attempts for one in self.resumptions)
        return self.attempts < most_attempts and total < MOST_RESUMPTIONS

    def close(self) -> None:
        """Give the rest up unless it has ended; its place is free with the engine's next step."""
        if self.is_wanted:
            self._is_abandoned = True
            self._abandon(self)

    def fail(self, error: MlxManagerError) -> None:
        """Nothing more will come: the engine process is gone, or somebody gave it up. The first to say so says why."""
        if self._error is None:
            self._error = error
            self._news()

    def expire(self, error: MlxManagerError) -> None:
        """Give the request up, whether or not anybody is reading, and let its reader meet `error`."""
        if not self.is_over:
            is_wanted = self.is_wanted
            self.fail(error)
            if is_wanted:
                self._is_abandoned = True
                self._abandon(self)

    def lost(self, how: str, abandon: Callable[[Resumable[Work]], None]) -> None:
        """Its engine process has ended or lost it; `abandon` is called when nobody waits any more for another."""
        self._abandon = abandon
        if last := self._open_resumption:
            last.how = how
        else:
            self.resumptions.append(Resumption(time.monotonic_ns(), self._made_tokens, how))

    def resume(self, sequence_id: int, abandon: Callable[[Resumable[Work]], None]) -> Work:
        """Return the work for an engine process, which will know it by a new id."""
        if last := self._open_resumption:
            last.attempts += 1
        self.sequence_id = sequence_id
        self._abandon = abandon
        work: Work = msgspec.structs.replace(self._rest(), sequence_id=sequence_id)
        return work

    def _went_on(self, at_ns: int) -> None:
        """A process that it was given to has brought it forward, or to its end."""
        if last := self._open_resumption:
            last.resumed_ns = at_ns
        if self.on_progress is not None:
            tell, self.on_progress = self.on_progress, None
            tell(self)

    @property
    def _open_resumption(self) -> Resumption | None:
        last = self.resumptions[-1] if self.resumptions else None
        return last if last and last.resumed_ns is None else None

    @property
    def _made_tokens(self) -> int:
        return 0

    def _rest(self) -> Work:
        """What is still to be done."""
        return self.work

    def _news(self) -> None:
        """Let the reader look."""
        raise NotImplementedError


Request = Resumable[Submit] | Resumable[Embed]
