"""Which requests are being worked on, and how to end one of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from mlx_manager.chat.events import Timeline
from mlx_manager.chat.request import Operation, Origin
from mlx_manager.errors import MlxManagerError, RequestCancelled
from mlx_manager.mlx_server.generation.deadline import Deadline

Phase = Literal["route", "model.load", "tokenize", "queue", "compute", "prefill", "decode"]


@dataclass(frozen=True, slots=True, eq=False)
class RunningRequest:
    """A request that is being worked on since `began_ns` (Unix time); `model` is what it asked for.

    `timeline` says how far it is.
    """

    origin: Origin
    operation: Operation
    model: str
    timeline: Timeline
    deadline: Deadline
    began_ns: int = field(default_factory=time.time_ns)

    @property
    def phase(self) -> Phase:
        """What is being done for it: the name of the span that will tell of it."""
        streams, line = self.deadline.streams, self.timeline
        if any(stream.first_token_at_ns is not None for stream in streams):
            return "decode"
        if any(stream.admitted_at_ns is not None for stream in streams):
            return "prefill"
        if line.queued_ns is not None:
            return "compute" if self.operation == "embeddings" else "queue"
        if line.tokenize is not None:
            return "tokenize"
        return "route" if line.route is None else "model.load"

    @property
    def output_tokens(self) -> int:
        """Tokens that were made for it by now."""
        return sum(stream.received_tokens for stream in self.deadline.streams)


class RunningRequests:
    """Those of this process, the oldest first."""

    def __init__(self) -> None:
        self._requests: dict[RunningRequest, None] = {}

    def __iter__(self) -> Iterator[RunningRequest]:
        return iter(tuple(self._requests))

    def cancel(self, request_id: str) -> list[RunningRequest]:
        """End the requests of this id (clients may send one twice) and return them; their clients get an error."""
        found = [one for one in self._requests if one.origin.request_id == request_id]
        for one in found:
            one.deadline.bring_forward(
                RequestCancelled("The administrator of this server cancelled this request.")
            )
        return found

    def end(self, error: MlxManagerError) -> None:
        """End all that haven't ended, wherever they are: their clients get `error`."""
        for one in self:
            one.deadline.bring_forward(error)

    @contextmanager
    def holding(self, request: RunningRequest) -> Iterator[None]:
        """Count `request` among them until the block ends."""
        self._requests[request] = None
        try:
            yield
        finally:
            del self._requests[request]
