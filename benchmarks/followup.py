"""How long does a second turn wait for its first token, in the process that has read the first turn, and in another?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.contended import first_token_s
from benchmarks.models import make_model
from benchmarks.prompts import Prompt, PromptMaker
from benchmarks.rounds import Say
from benchmarks.servers import HOST, Server, mlx_manager_server
from benchmarks.work import ModelName

PROMPT_TOKENS, QUICK_PROMPT_TOKENS = (2_000, 8_000), (1_000,)
QUESTION, OTHER_QUESTION = "And what does that say of the engine?", "Which of it matters most?"
# Files are written behind the requests' backs.
SETTLE_S = 2.0


@dataclass(slots=True)
class FollowUp:
    """Seconds to the first token of prompts of so many tokens, in one order of conversations.

    `cold_s` of the first turn, `warm_s` of the second, which has the first and a question more, and `restart_s` of
    another second turn when the server has been started anew.
    """

    model: ModelName
    tokens: int
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


def measure_followups(
    model: ModelName, rounds: int, folder: Path, say: Say, *, is_quick: bool = False
) -> list[FollowUp]:
    """Measure `rounds` conversations of each length, one request at a time, with the prefix cache's files on."""
    path = make_model(folder / "models", model)
    lengths = QUICK_PROMPT_TOKENS if is_quick else PROMPT_TOKENS
    maker = PromptMaker(path)
    asked = {tokens: maker.make([tokens] * rounds, seed=tokens) for tokens in lengths}
    found = [FollowUp(model, tokens) for tokens in lengths]
    environment = {
        "MLX_SERVER_PREFIX_DISK_MIB": "4096",
        "MLX_SERVER_PREFIX_DISK_PATH": str(folder / "prefixes"),
    }
    for is_restarted in (False, True):
        with mlx_manager_server(path, folder / "mlx-manager", environment) as server:
            for row in found:
                say(f"{model}, {row.tokens} tokens" + (", started anew" if is_restarted else ""))
                asyncio.run(_measure(row, asked[row.tokens], server, is_restarted=is_restarted))
            time.sleep(SETTLE_S)
    return found


async def _measure(
    row: FollowUp, prompts: Sequence[Prompt], server: Server, *, is_restarted: bool
) -> None:
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{server.port}", timeout=600) as client:
        # What a process does once is no part of anything.
        await first_token_s(client, server.model_id, [_user("Hello")])
        for prompt in prompts:
            first = _user(prompt.text)
            # Not the one whose prompt was stored as a whole.
            question = OTHER_QUESTION if is_restarted else QUESTION
            later = [first, {"role": "assistant", "content": "ok"}, _user(question)]
            if is_restarted:
                row.restart_s.append(await first_token_s(client, server.model_id, later))
            else:
                row.cold_s.append(await first_token_s(client, server.model_id, [first]))
                row.warm_s.append(await first_token_s(client, server.model_id, later))


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
