"""How long does a second turn wait for its first token, where the first turn was read, and in another process?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.child import Child
from benchmarks.compare import BARE, MLX_LM, OURS
from benchmarks.contended import OUTPUT_TOKENS, first_token_s, first_tokens_s
from benchmarks.contenders import SETTLE_S
from benchmarks.models import make_model
from benchmarks.prompts import Message, Prompt, PromptMaker, user
from benchmarks.rounds import Say, orders
from benchmarks.servers import HOST, Server, fast_blas, mlx_lm_server, mlx_manager_server
from benchmarks.work import BareRequest, ModelName

PROMPT_TOKENS, QUICK_PROMPT_TOKENS = (2_000, 8_000), (1_000,)
QUESTION, OTHER_QUESTION = "And what does that say of the engine?", "Which of it matters most?"
# Files are written behind the requests' backs.
FILES_S = 2.0
# Sends a conversation and returns the seconds to the first token of what is answered.
Ask = Callable[[Sequence[Message]], Awaitable[float]]


@dataclass(slots=True)
class FollowUp:
    """Seconds to the first token of prompts of so many tokens, in one order of conversations.

    `cold_s` of the first turn, `warm_s` of the second, which has the first and a question more, and `restart_s` of
    another second turn when the server has been started anew. The bare loop keeps nothing of a request and has nothing
    to lose by a restart: its `warm_s` is what a second turn takes that is read from its first token, and there is no
    `restart_s`.
    """

    model: ModelName
    tokens: int
    contender: str = OURS
    cold_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)
    restart_s: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Requests that were sent. An answer that is not one ends the benchmark."""
        return len(self.cold_s) + len(self.warm_s) + len(self.restart_s)

    def ratios(self, later_s: Sequence[float]) -> list[float]:
        """Return what each conversation's later turn took of its first."""
        return [later / cold for later, cold in zip(later_s, self.cold_s, strict=True)]

    def warm_ratios(self, other: FollowUp) -> list[float]:
        """Return what each conversation's second turn took of another contender's."""
        return [own / theirs for own, theirs in zip(self.warm_s, other.warm_s, strict=True)]


def measure_followups(
    model: ModelName,
    rounds: int,
    folder: Path,
    say: Say,
    *,
    has_mlx_lm: bool = True,
    is_quick: bool = False,
) -> list[FollowUp]:
    """Measure `rounds` conversations of each length, one request at a time: of all contenders in turns.

    MLX Manager's prefix cache has its files on.
    """
    path = make_model(folder / "models", model)
    lengths = QUICK_PROMPT_TOKENS if is_quick else PROMPT_TOKENS
    maker = PromptMaker(path)
    names = [OURS, BARE, MLX_LM] if has_mlx_lm else [OURS, BARE]
    found = {tokens: [FollowUp(model, tokens, name) for name in names] for tokens in lengths}
    for is_restarted in (False, True):
        with _contenders(path, folder, names, is_restarted=is_restarted) as servers:
            for tokens, rows in found.items():
                prompts = maker.make([tokens] * rounds, seed=tokens)
                say(f"{model}, {tokens} tokens" + (", started anew" if is_restarted else ""))
                asyncio.run(_measure(rows, prompts, servers, maker, is_restarted=is_restarted))
            time.sleep(FILES_S)
    return [row for rows in found.values() for row in rows]


@contextmanager
def _contenders(
    path: Path, folder: Path, names: Sequence[str], *, is_restarted: bool
) -> Iterator[dict[str, Server | Child]]:
    """Start those who take part."""
    environment = {
        "MLX_SERVER_PREFIX_DISK_MIB": "4096",
        "MLX_SERVER_PREFIX_DISK_PATH": str(folder / "prefixes"),
    }
    with ExitStack() as stack:
        ours = stack.enter_context(mlx_manager_server(path, folder / "mlx-manager", environment))
        started: dict[str, Server | Child] = {OURS: ours}
        if MLX_LM in names:
            started[MLX_LM] = stack.enter_context(mlx_lm_server(path, folder / "mlx-lm"))
        if not is_restarted:
            bare = Child("benchmarks.bare", [str(path)], fast_blas())
            started[BARE] = stack.enter_context(bare)
        yield started


async def _measure(
    rows: Sequence[FollowUp],
    prompts: Sequence[Prompt],
    started: Mapping[str, Server | Child],
    maker: PromptMaker,
    *,
    is_restarted: bool,
) -> None:
    async with AsyncExitStack() as stack:
        asks = {
            name: _ask_bare(one, maker)
            if isinstance(one, Child)
            else await stack.enter_async_context(_behind_http(one))
            for name, one in started.items()
        }
        for ask in asks.values():
            # What a process does once is no part of anything.
            await ask([user("Hello")])
        taking_part = [row for row in rows if row.contender in asks]
        for prompt, order in zip(prompts, orders(taking_part, len(prompts)), strict=True):
            for row in order:
                await _converse(row, prompt, asks[row.contender], is_restarted=is_restarted)
                await asyncio.sleep(SETTLE_S)


async def _converse(row: FollowUp, prompt: Prompt, ask: Ask, *, is_restarted: bool) -> None:
    first = user(prompt.text)
    # Not the one whose prompt was stored as a whole.
    question = OTHER_QUESTION if is_restarted else QUESTION
    later = [first, {"role": "assistant", "content": "ok"}, user(question)]
    if is_restarted:
        row.restart_s.append(await ask(later))
    else:
        row.cold_s.append(await ask([first]))
        row.warm_s.append(await ask(later))


@asynccontextmanager
async def _behind_http(server: Server) -> AsyncIterator[Ask]:
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{server.port}", timeout=600) as client:
        yield lambda messages: first_token_s(client, server.model_id, messages)


def _ask_bare(child: Child, maker: PromptMaker) -> Ask:
    async def ask(messages: Sequence[Message]) -> float:
        """Nothing else goes on meanwhile, so it may wait for the child."""
        request = BareRequest(maker.encode(messages), OUTPUT_TOKENS)
        [first_s] = first_tokens_s(child, [[request]])
        return first_s

    return ask
