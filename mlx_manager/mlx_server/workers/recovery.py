"""Bring the requests of an engine process that has ended to the next one, and those of a lost batch back to theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from mlx_manager.errors import (
    GenerationFailed,
    MlxManagerError,
    RequestBreaksBatch,
    RequestEndsEngine,
)
from mlx_manager.mlx_server.workers.resume import Request
from mlx_manager.mlx_server.workers.stream import engine_ended
from mlx_manager.mlx_server.workers.watch import EngineWatch

logger = logging.getLogger(__name__)


class Successor(Protocol):
    """What is needed of the engine process that goes on."""

    def resume(self, request: Request) -> None:
        """Go on with a request that another process has begun, or that this one has lost."""
        ...


class Recovery:
    """Holds the requests of one model between two of its engine processes.

    The first time all of them are given to the next process together. When that one ends before each has gone on, one
    of them may be why: they are given one after another then, each when the one before has gone on. So the one that
    brings a process to its end again at the same place is alone there, is given up after `most_attempts`, and costs no
    other its answer. 0: none is ever given to a process again.

    Those of a lost batch go back to the same process, all of them at once: there the scheduler sees to it that one that
    was lost twice begins alone.
    """

    def __init__(self, model_id: str, most_attempts: int, watch: EngineWatch) -> None:
        self._model_id = model_id
        self._most_attempts = most_attempts
        self._watch = watch
        self._held: list[Request] = []
        self._unproven: list[Request] = []
        self._is_cautious = False
        self._successor: Successor | None = None

    @property
    def waiting(self) -> int:
        """Requests that no process works on."""
        return len(self._held)

    def lose(self, requests: list[Request], how: str) -> None:
        """Take the requests of a process that has just ended; whoever is to be given up meets an error."""
        self._successor = None
        self._is_cautious = bool(self._unproven)
        self._unproven = []
        kept = [request for request in requests if self._keep(request, how)]
        # Those that have had a chance and used none of it come last.
        self._held = sorted([*self._held, *kept], key=lambda request: request.attempts)

    def lose_batch(self, requests: list[Request], how: str, engine: Successor) -> None:
        """Give a process that has lost its batch or some rows, and lives, those requests once more."""
        logger.error(
            "batch lost %(model)s requests=%(requests)d how=%(how)s",
            {"model": self._model_id, "requests": len(requests), "how": how},
        )
        for request in requests:
            if self._most_attempts == 0 or not request.is_wanted:
                request.fail(_batch_lost(self._model_id, how))
                continue
            request.lost(how, self._drop)
            if request.may_resume(self._most_attempts):
                self._watch.resumed(self._model_id)
                engine.resume(request)
            else:
                self._give_up(request, how, _breaks_batch)
                # Others may have waited to see what becomes of it.
                self._proven(request)

    def go_on(self, successor: Successor) -> None:
        """Give what is held to a fresh process."""
        self._successor = successor
        if self._held:
            logger.warning(
                "requests resumed %(model)s requests=%(requests)d one_by_one=%(one_by_one)s",
                {
                    "model": self._model_id,
                    "requests": len(self._held),
                    "one_by_one": self._is_cautious,
                },
            )
        self._give()

    def end(self, error: MlxManagerError) -> None:
        """Let everybody who waits for a process meet `error`."""
        held, self._held = self._held, []
        for request in held:
            request.expire(error)

    def _keep(self, request: Request, how: str) -> bool:
        if not request.is_wanted or self._most_attempts == 0:
            request.fail(engine_ended(self._model_id, how))
            return False
        request.lost(how, self._drop)
        if request.may_resume(self._most_attempts):
            return True
        self._give_up(request, how, _ends_engine)
        return False

    def _give_up(
        self, request: Request, how: str, error: Callable[[str, int, str], MlxManagerError]
    ) -> None:
        logger.error(
            "request given up %(model)s attempts=%(attempts)d how=%(how)s",
            {"model": self._model_id, "attempts": request.attempts, "how": how},
        )
        request.fail(error(self._model_id, request.attempts + 1, how))

    def _give(self) -> None:
        """Give the successor all, or the next one when nobody is to be with it."""
        while self._successor is not None and self._held:
            if self._is_cautious and self._unproven:
                return
            request = self._held.pop(0)
            request.on_progress = self._proven
            self._unproven.append(request)
            self._watch.resumed(self._model_id)
            self._successor.resume(request)

    def _proven(self, request: Request) -> None:
        if request in self._unproven:
            self._unproven.remove(request)
        if not (self._unproven or self._held):
            self._is_cautious = False
        self._give()

    def _drop(self, request: Request) -> None:
        """Nobody waits for this one any more."""
        if request in self._held:
            self._held.remove(request)
        request.fail(engine_ended(self._model_id, "ended"))


def _ends_engine(model_id: str, times: int, how: str) -> RequestEndsEngine:
    return RequestEndsEngine(
        f"The engine process of {model_id} ended each of the {times} times that it worked on this request (the last "
        f"time it {how}). It is not tried again; the server's log has what the process said."
    )


def _breaks_batch(model_id: str, times: int, how: str) -> RequestBreaksBatch:
    return RequestBreaksBatch(
        f"The engine of {model_id} failed each of the {times} times that it worked on this request and those beside "
        f"it (the last time it {how}). It is not tried again; the server's log has the details."
    )


def _batch_lost(model_id: str, how: str) -> GenerationFailed:
    return GenerationFailed(
        f"The engine of {model_id} {how} while it worked on this request and those beside it, any of which may be why. "
        "Send it again; the server's log has the details."
    )
