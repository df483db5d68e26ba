"""What is asked of each contender, what it answers, and the lines of JSON in which processes say so to each other."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Literal

import msgspec

ModelName = Literal["tiny", "small"]
MODEL_NAMES: tuple[ModelName, ...] = ("tiny", "small")
# `even`: all prompts and all answers are equally long. `mixed`: as people's are, from a word to some pages.
WorkName = Literal["even", "mixed"]
CLIENT_COUNTS: dict[WorkName, tuple[int, ...]] = {"even": (1, 4, 16, 32, 64), "mixed": (16,)}
QUICK_CLIENT_COUNTS: dict[WorkName, tuple[int, ...]] = {"even": (1, 32), "mixed": (16,)}

PROMPT_TOKENS = 64
OUTPUT_TOKENS: dict[ModelName, int] = {"tiny": 96, "small": 48}
# So many that the first and the last ones, between which no batch is full, weigh little: with five requests each, 32
# clients that have drifted apart lose a tenth of a bare loop's speed to them alone.
REQUESTS_EACH: dict[ModelName, dict[int, int]] = {
    "tiny": {1: 20, 4: 20, 16: 16, 32: 16, 64: 8},
    "small": {1: 8, 4: 6, 16: 5, 32: 5, 64: 3},
}
# The shortest and the longest.
MIXED_PROMPT_TOKENS = (32, 1_500)
MIXED_OUTPUT_TOKENS = (8, 200)
MIXED_REQUESTS_EACH: dict[ModelName, int] = {"tiny": 12, "small": 6}
QUICK_DIVISOR = 3


class Length(msgspec.Struct, frozen=True):
    """How many tokens a prompt and its answer have."""

    prompt_tokens: int
    output_tokens: int


class Load(msgspec.Struct, frozen=True):
    """The lengths of each client's requests, of which it sends the next one when the last is answered."""

    lengths: list[list[Length]]

    @property
    def clients(self) -> int:
        """How many there are."""
        return len(self.lengths)

    @property
    def requests(self) -> int:
        """Requests of all clients together."""
        return sum(map(len, self.lengths))

    @property
    def output_tokens(self) -> int:
        """Tokens of all answers together."""
        return sum(one.output_tokens for own in self.lengths for one in own)

    def warm_up(self) -> Load:
        """Return the first request of each client."""
        return Load([own[:1] for own in self.lengths])


class BareRequest(msgspec.Struct, frozen=True):
    """A prompt as token ids, and how many tokens its answer has. Its client waits `pause_s` before it."""

    prompt: list[int]
    output_tokens: int
    pause_s: float = 0.0


class BareTask(msgspec.Struct, frozen=True):
    """The load without HTTP: for each client its requests, one after the other.

    With `is_led` all is over when the first client has its last answer, whatever the others still wait for.
    """

    clients: list[list[BareRequest]]
    is_led: bool = False


class Posted(msgspec.Struct, frozen=True):
    """A body, and the token counts of a right answer."""

    body: str
    length: Length


class ClientTask(msgspec.Struct, frozen=True):
    """The load as HTTP: for each client what to post to `path`."""

    host: str
    port: int
    path: str
    clients: list[list[Posted]]


class Answers(msgspec.Struct, frozen=True):
    """What came of a load, as the process saw that ran it.

    `gaps_s` are the times between the tokens of an answer; both it and `first_token_s` are empty for answers that
    came whole. `first_token_s` of the bare loop are the first client's, then the second's, and so on. `failures` has a
    line for each request whose answer was not what it should be.
    """

    wall_s: float
    cpu_s: float
    requests: int
    tokens: int
    first_token_s: list[float]
    gaps_s: list[float]
    failures: list[str]


def load_for(
    model: ModelName, clients: int, work: WorkName = "even", *, is_quick: bool = False
) -> Load:
    """Return the load that is measured on `model` with so many clients."""
    known = REQUESTS_EACH[model]
    requests_each = (
        MIXED_REQUESTS_EACH[model]
        if work == "mixed"
        else known[max(count for count in known if count <= max(clients, 1))]
    )
    if is_quick:
        requests_each = max(1, requests_each // QUICK_DIVISOR)
    if work == "mixed":
        return mixed_load(clients, requests_each)
    return even_load(clients, requests_each, OUTPUT_TOKENS[model])


def even_load(clients: int, requests_each: int, output_tokens: int) -> Load:
    """Return a load of requests that are all alike."""
    return Load([[Length(PROMPT_TOKENS, output_tokens)] * requests_each for _ in range(clients)])


def mixed_load(clients: int, requests_each: int) -> Load:
    """Return a load of many short requests and few long ones, always the same.

    Each client has the same prompts and the same answers by their lengths, joined and ordered in a way of its own: so
    none is left alone with the longest ones in the end.
    """
    return Load([list(_mixed(requests_each, random.Random(client))) for client in range(clients)])


def _mixed(requests: int, chance: random.Random) -> Iterator[Length]:
    prompts = _spaced(*MIXED_PROMPT_TOKENS, requests)
    outputs = _spaced(*MIXED_OUTPUT_TOKENS, requests)
    chance.shuffle(prompts)
    chance.shuffle(outputs)
    return map(Length, prompts, outputs)


def _spaced(least: int, most: int, count: int) -> list[int]:
    """Return `count` lengths between the two, each longer than the one before by the same factor."""
    step = math.log(most / least) / max(count - 1, 1)
    return [round(least * math.exp(step * number)) for number in range(count)]
