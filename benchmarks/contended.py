"""How long does a short request wait for its first token while a long prompt is read?"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.child import Child
from benchmarks.compare import BARE, MLX_LM, OURS
from benchmarks.contenders import CHAT_PATH
from benchmarks.models import make_model
from benchmarks.prompts import WORDS, PromptMaker, user
from benchmarks.rounds import Say
from benchmarks.servers import HOST, Server, fast_blas, mlx_lm_server, mlx_manager_server
from benchmarks.work import BareRequest, BareTask, ModelName
from mlx_manager.observability import attributes as names
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.summary import TraceFilter

MODEL: ModelName = "tiny"
# Of about four tokens each.
LONG_WORDS, QUICK_LONG_WORDS, LONGEST_WORDS = 2_000, 1_000, 8_000
# A prompt of so many words takes most of a minute on a CPU, each time.
MOST_LONGEST_ROUNDS = 2
LONGEST_CONTEXT = 40_960
SHORT_WORDS = 16
ALONE = 12
# Between two short requests: so much of the time that a long one takes alone.
PAUSE_SHARE = (0.05, 0.35)
# More short requests than can be asked beside a long one.
MOST_BESIDE = 50
OUTPUT_TOKENS = 4
BY_ITSELF = "by-itself"


@dataclass(slots=True)
class Contended:
    """Seconds to the first token of one contender's short requests, by themselves and beside a long one.

    `long_s` are those of the long ones, `alone_long_s` of one that nothing was beside. `piece_s` is what a piece of
    that took, on average: what a short request finds under way. None where the server doesn't say. `long_words` is how
    long the long ones are.
    """

    server: str
    long_words: int = LONG_WORDS
    alone_s: list[float] = field(default_factory=list)
    beside_s: list[float] = field(default_factory=list)
    long_s: list[float] = field(default_factory=list)
    alone_long_s: float = 0.0
    piece_s: float | None = None

    @property
    def requests(self) -> int:
        """Requests that were sent. An answer that is not one ends the benchmark."""
        return len(self.alone_s) + len(self.beside_s) + len(self.long_s) + 1


def measure_longest(rounds: int, folder: Path, say: Say) -> list[Contended]:
    """Measure MLX Manager beside prompts of some 32,000 tokens, a few at most."""
    path = make_model(folder / "models", MODEL, LONGEST_CONTEXT)
    rounds = min(rounds, MOST_LONGEST_ROUNDS)
    return [_measure_ours(path, folder, rounds, LONGEST_WORDS, say)]


def measure_contended(
    rounds: int, folder: Path, say: Say, *, has_mlx_lm: bool = True, is_quick: bool = False
) -> list[Contended]:
    """Measure each contender by itself: `rounds` long prompts, beside which short ones come one after the other."""
    path = make_model(folder / "models", MODEL)
    words = QUICK_LONG_WORDS if is_quick else LONG_WORDS
    found = [
        _measure_ours(path, folder, rounds, words, say),
        _measure_bare(path, rounds, words, say),
    ]
    if has_mlx_lm:
        with mlx_lm_server(path, folder / "mlx-lm") as server:
            found.append(asyncio.run(_measure(MLX_LM, server, rounds, words, say)))
    return found


def _measure_ours(path: Path, folder: Path, rounds: int, words: int, say: Say) -> Contended:
    own = folder / "mlx-manager"
    with mlx_manager_server(path, own) as server:
        found = asyncio.run(_measure(OURS, server, rounds, words, say))
    # The store is complete when its server has ended.
    found.piece_s = _piece_s(own / "traces.db")
    return found


def _measure_bare(path: Path, rounds: int, words: int, say: Say) -> Contended:
    """Measure the bare loop: short prompts join the batch while the long one is read."""
    found, maker, chance = Contended(BARE, words), PromptMaker(path), random.Random(0)

    def one(words: int, pause_s: float = 0.0) -> BareRequest:
        token_ids = maker.encode([user(_text(words, chance))])
        return BareRequest(token_ids, OUTPUT_TOKENS, pause_s)

    with Child("benchmarks.bare", [str(path)], fast_blas()) as child:
        first_tokens_s(child, [[one(SHORT_WORDS)]])
        found.alone_s = first_tokens_s(child, [[one(SHORT_WORDS) for _ in range(ALONE)]])
        [found.alone_long_s] = first_tokens_s(child, [[one(words)]])
        for number in range(1, rounds + 1):
            say(f"{BARE}, long prompt {number} of {rounds}")
            pauses_s = [chance.uniform(*PAUSE_SHARE) for _ in range(MOST_BESIDE)]
            short = [one(SHORT_WORDS, share * found.alone_long_s) for share in pauses_s]
            long_s, *beside_s = first_tokens_s(child, [[one(words)], short], is_led=True)
            found.long_s.append(long_s)
            found.beside_s += beside_s
    return found


def first_tokens_s(
    bare: Child, clients: list[list[BareRequest]], *, is_led: bool = False
) -> list[float]:
    """Return the bare loop's seconds to each first token, client by client. Raises RuntimeError when one went wrong."""
    answers = bare.ask(BareTask(clients, is_led))
    if answers.failures:
        raise RuntimeError(answers.failures[0])
    return answers.first_token_s


async def _measure(name: str, server: Server, rounds: int, words: int, say: Say) -> Contended:
    found = Contended(name, words)
    async with _client(server) as ask:
        await ask(SHORT_WORDS)
        found.alone_s = [await ask(SHORT_WORDS) for _ in range(ALONE)]
        found.alone_long_s = await ask(words, BY_ITSELF)
        for number in range(1, rounds + 1):
            say(f"{name}, long prompt {number} of {rounds}")
            long = asyncio.create_task(ask(words))
            chance = random.Random(number)
            await asyncio.sleep(chance.uniform(*PAUSE_SHARE) * found.alone_long_s)
            while not long.done():
                first_s = await ask(SHORT_WORDS)
                if not long.done():
                    found.beside_s.append(first_s)
                    await asyncio.sleep(chance.uniform(*PAUSE_SHARE) * found.alone_long_s)
            found.long_s.append(await long)
    return found


@asynccontextmanager
async def _client(server: Server) -> AsyncIterator[Any]:
    """Yield what asks with a prompt of so many words, in a session, and returns the seconds to its first token."""
    chance = random.Random(0)
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{server.port}", timeout=600) as client:

        async def ask(words: int, session: str = "any") -> float:
            messages = [user(_text(words, chance))]
            return await first_token_s(client, server.model_id, messages, session)

        yield ask


def _text(words: int, chance: random.Random) -> str:
    """Return so many words behind a number that hardly comes twice."""
    return f"{chance.random()} {' '.join(chance.choices(WORDS, k=words))}"


async def first_token_s(
    client: httpx.AsyncClient,
    model: str,
    messages: Sequence[Mapping[str, str]],
    session: str = "any",
) -> float:
    """Return the seconds from sending a chat to its first piece of text. Raises RuntimeError when there is none."""
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    began_s, first_s = time.perf_counter(), None
    headers = {"X-Session-ID": session}
    async with client.stream("POST", CHAT_PATH, json=body, headers=headers) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if first_s is None and _has_text(line):
                first_s = time.perf_counter() - began_s
    if first_s is None:
        raise RuntimeError("an answer without a token")
    return first_s


def _has_text(line: str) -> bool:
    if not line.startswith("data: {"):
        return False
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return bool(choices and choices[0]["delta"].get("content"))


def _piece_s(traces: Path) -> float:
    """Return what a piece of the long prompt took that was read by itself."""
    with TraceReader(traces) as reader:
        [found] = reader.list_traces(TraceFilter(session=BY_ITSELF)).traces
        trace = reader.get_trace(found.trace_id)
    assert trace is not None
    [prefill] = [span for span in trace.spans if span.name == names.SPAN_PREFILL]
    pieces = prefill.attributes[names.PREFILL_CHUNKS]
    assert isinstance(pieces, int)
    return prefill.duration_ns / 1e9 / pieces
