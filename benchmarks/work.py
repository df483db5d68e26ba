"""What is asked of each contender, what it answers, and the lines of JSON in which processes say so to each other."""

from __future__ import annotations

from typing import Literal

import msgspec

ModelName = Literal["tiny", "small"]
MODEL_NAMES: tuple[ModelName, ...] = ("tiny", "small")
CLIENT_COUNTS = (1, 4, 16, 32)

PROMPT_TOKENS = 64
OUTPUT_TOKENS: dict[ModelName, int] = {"tiny": 96, "small": 48}
# So many that the first and the last ones, between which no batch is full, weigh little: with five requests each, 32
# clients that have drifted apart lose a tenth of a bare loop's speed to them alone.
REQUESTS_EACH: dict[ModelName, dict[int, int]] = {
    "tiny": {1: 20, 4: 20, 16: 16, 32: 16},
    "small": {1: 8, 4: 6, 16: 5, 32: 5},
}
QUICK_DIVISOR = 3


class Load(msgspec.Struct, frozen=True):
    """So many clients, each of which sends `requests_each` requests, the next one when the last is answered."""

    clients: int
    requests_each: int
    output_tokens: int
    prompt_tokens: int = PROMPT_TOKENS

    @property
    def requests(self) -> int:
        """Requests of all clients together."""
        return self.clients * self.requests_each


class BareRequest(msgspec.Struct, frozen=True):
    """A prompt as token ids, and how many tokens its answer has."""

    prompt: list[int]
    output_tokens: int


class BareTask(msgspec.Struct, frozen=True):
    """The load without HTTP: for each client its requests, one after the other."""

    clients: list[list[BareRequest]]


class ClientTask(msgspec.Struct, frozen=True):
    """The load as HTTP: for each client the bodies to post to `path`, and the token counts of a right answer."""

    host: str
    port: int
    path: str
    bodies: list[list[str]]
    prompt_tokens: int
    output_tokens: int


class Answers(msgspec.Struct, frozen=True):
    """What came of a load, as the process saw that ran it.

    `gaps_s` are the times between the tokens of an answer; both it and `first_token_s` are empty for answers that
    came whole. `failures` has a line for each request whose answer was not what it should be.
    """

    wall_s: float
    cpu_s: float
    requests: int
    tokens: int
    first_token_s: list[float]
    gaps_s: list[float]
    failures: list[str]


def load_for(model: ModelName, clients: int, *, is_quick: bool) -> Load:
    """Return the load that is measured on `model` with so many clients."""
    known = REQUESTS_EACH[model]
    requests_each = known[max(count for count in known if count <= max(clients, 1))]
    if is_quick:
        requests_each = max(1, requests_each // QUICK_DIVISOR)
    return Load(clients, requests_each, OUTPUT_TOKENS[model])
