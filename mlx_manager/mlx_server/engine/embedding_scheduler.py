"""Decide which inputs are computed together. Pure: no tensors, no clock, no locks.

Requests take turns, so a small one waits for one batch and not for all of a large one. A batch has inputs of about the
same length, whosever they are: what is padded is computed for nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlx_manager.mlx_server.engine.messages import Embed, EmbedStamps
from mlx_manager.mlx_server.engine.scheduler import Limits

# Up to so many tokens, padding counted, one pass costs about the same however few of them are real.
SMALL_BATCH_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a request: where it stands there, and its token ids."""

    position: int
    token_ids: list[int]


@dataclass(slots=True, eq=False)
class Request:
    """A request for vectors in the engine. `left` are the inputs still to be computed, the longest last."""

    embed: Embed
    stamps: EmbedStamps
    left: list[Input]

    @classmethod
    def received(cls, embed: Embed, at_ns: int) -> Request:
        """Take a request that has come at `at_ns`, in monotonic nanoseconds."""
        inputs = [Input(position, token_ids) for position, token_ids in enumerate(embed.token_ids)]
        inputs.sort(key=lambda one: len(one.token_ids))
        return cls(embed, EmbedStamps(at_ns), inputs)

    @property
    def id(self) -> int:
        """The id that the API process gave it."""
        return self.embed.sequence_id


@dataclass(slots=True)
class Batch:
    """Inputs of one forward pass, and whose they are; at most `budget_tokens` with padding, unless it is one input."""

    budget_tokens: int
    rows: list[tuple[Request, Input]] = field(default_factory=list)
    longest: int = 0
    _real_tokens: int = 0

    @property
    def padded_tokens(self) -> int:
        """Tokens that the pass computes."""
        return self.longest * len(self.rows)

    @property
    def requests(self) -> list[Request]:
        """Those whose inputs these are, each once."""
        return list({request.id: request for request, _ in self.rows}.values())

    def fill(self, request: Request) -> None:
        """Take the longest inputs of a request as long as they fit."""
        while request.left and self._fits(len(request.left[-1].token_ids)):
            self._take(request, request.left.pop())

    def by_request(self) -> list[Batch]:
        """Return one batch for each request, with its inputs of this one."""
        parts = {request.id: Batch(self.budget_tokens) for request in self.requests}
        for request, one in self.rows:
            parts[request.id]._take(request, one)
        return list(parts.values())

    def _take(self, request: Request, one: Input) -> None:
        self.rows.append((request, one))
        self.longest = max(self.longest, len(one.token_ids))
        self._real_tokens += len(one.token_ids)

    def _fits(self, tokens: int) -> bool:
        if not self.rows:
            return True
        padded = max(self.longest, tokens) * (len(self.rows) + 1)
        is_dense = 2 * (self._real_tokens + tokens) >= padded
        return padded <= self.budget_tokens and (is_dense or padded <= SMALL_BATCH_TOKENS)


class EmbeddingScheduler:
    """Holds the requests in the order of their turns."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests: OrderedDict[int, Request] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def add(self, request: Request) -> None:
        """Put a request at the end."""
        self._requests[request.id] = request

    def remove(self, sequence_id: int) -> Request | None:
        """Forget a request; None when it isn't there."""
        return self._requests.pop(sequence_id, None)

    def next_batch(self) -> Batch:
        """Take inputs of the request whose turn it is, and of others as far as they fit. Empty when there is none."""
        limits = self._limits
        is_alone = len(self._requests) == 1
        batch = Batch(limits.idle_prefill_chunk_tokens if is_alone else limits.prefill_chunk_tokens)
        for request in self._requests.values():
            batch.fill(request)
        if batch.rows:
            self._requests.move_to_end(batch.rows[0][0].id)
        return batch
