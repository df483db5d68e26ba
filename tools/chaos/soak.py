"""Many short requests with all that goes wrong between them; afterwards the books agree and nothing is left over."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tools.chaos.books import Fate, Line, compared
from tools.chaos.connection import TIMEOUT_S, Connection, Reply
from tools.chaos.memory import Memory
from tools.chaos.possessions import Held, held_at_rest
from tools.chaos.server import MODEL, Server
from tools.chaos.settling import settled
from tools.chaos.short import some

CLIENTS = 24
# An engine is killed after about so many requests.
REQUESTS_PER_KILL = 1000
LEFT_SHARE = 0.1
# A client that leaves does so at once, or in the middle of what is read or written for it.
LONGEST_PATIENCE_S = 0.05
ROUNDS = 10
CONTEXT_TOKENS = 1024


@dataclass(slots=True)
class Soaked:
    """What became of the requests, and what the server had left in the end; nothing in `wrong` means nothing was."""

    fates: dict[str, Fate] = field(default_factory=dict)
    kills: int = 0
    is_interrupted: bool = False
    seconds: float = 0.0
    memory: Memory = field(default_factory=Memory)
    books: list[Line] = field(default_factory=list)
    at_first: Held | None = None
    at_last: Held | None = None
    wrong: list[str] = field(default_factory=list)

    def interrupt(self) -> None:
        """Send no more."""
        self.is_interrupted = True


async def soak(folder: Path, requests: int, say: Callable[[str], None]) -> Soaked:
    """Send `requests` in rounds, and look at the memory after each; in the end compare all that was counted.

    Ctrl-C ends it with the requests that are on their way, and what has been sent by then is compared.
    """
    soaked = Soaked()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, soaked.interrupt)
    models = f'{{"{MODEL}": {{"context_tokens": {CONTEXT_TOKENS}}}}}'
    async with Server(folder, max_batch=16, prefix_cache_mib=8, models=models) as server:
        for number in range(ROUNDS):
            if soaked.is_interrupted:
                break
            await _round(server, requests // ROUNDS, number, soaked)
            soaked.memory.end_round(server)
            say(_progress(number, soaked))
            soaked.at_first = soaked.at_first or await held_at_rest(server)
        soaked.at_last = await held_at_rest(server, soaked.at_first)
        soaked.books = await _settled_books(server, soaked)
    soaked.wrong += _wrong(soaked)
    soaked.wrong += [f"process {pid} outlives its server" for pid in _orphans(server)]
    return soaked


def report(soaked: Soaked) -> str:
    """Return the tables of what was counted, and what is wrong below them."""
    assert soaked.at_first is not None
    assert soaked.at_last is not None
    kinds = ("clients", "audit", "metrics", "traces")
    before, after = soaked.at_first.figures, soaked.at_last.figures
    return "\n".join(
        [
            f"{len(soaked.fates)} requests, {soaked.kills} kills, {soaked.seconds:.0f} s",
            _columns("", *kinds),
            *(_columns(one.name, *(getattr(one, kind) for kind in kinds)) for one in soaked.books),
            _columns("at rest", "first", "last"),
            *(_columns(name, before[name], after[name]) for name in before),
            _columns("memory, MiB", "before", "after"),
            _columns("API process", soaked.memory.api[0], soaked.memory.api[-1]),
            _columns("engines", *(soaked.memory.engines_before_and_after() or ())),
            _columns("engine at most", None, max(soaked.memory.engine)),
            *(f"  ! {text}" for text in soaked.wrong),
            "nothing differs" if not soaked.wrong else f"{len(soaked.wrong)} differences",
        ]
    )


def _columns(name: str, *found: object) -> str:
    texts = (
        f"{one:.0f}" if isinstance(one, float) else "" if one is None else str(one) for one in found
    )
    return f"{name:28}" + "".join(f"{text:>11}" for text in texts)


async def _round(server: Server, requests: int, number: int, soaked: Soaked) -> None:
    began_s = time.monotonic()
    async with _beside(_kill_now_and_then(server, soaked), soaked.memory.watch(server)):
        shares = [len(range(client, requests, CLIENTS)) for client in range(CLIENTS)]
        await asyncio.gather(
            *(
                _client(server, f"soak-{number}-{client}", share, soaked)
                for client, share in enumerate(shares)
            )
        )
    soaked.seconds += time.monotonic() - began_s


@asynccontextmanager
async def _beside(*endless: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Have these run until the end of the block. What ends one of them before is raised then."""
    tasks = [asyncio.create_task(one) for one in endless]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if not isinstance(end, asyncio.CancelledError) and isinstance(end, BaseException):
            raise end


async def _kill_now_and_then(server: Server, soaked: Soaked) -> None:
    while True:
        await asyncio.sleep(0.05)
        if len(soaked.fates) >= (soaked.kills + 0.5) * REQUESTS_PER_KILL:
            server.send_engines(signal.SIGKILL)
            soaked.kills += 1


async def _client(server: Server, name: str, requests: int, soaked: Soaked) -> None:
    chance, url = random.Random(name), urlsplit(server.url)
    connection = Connection(url.hostname or "", url.port or 0)
    for turn in range(requests):
        if soaked.is_interrupted:
            break
        request_id, short = f"{name}-{turn}", some(chance)
        leaves = chance.random() < LEFT_SHARE
        patience_s = chance.uniform(0, LONGEST_PATIENCE_S) if leaves else TIMEOUT_S
        try:
            reply = await connection.ask(short.path, short.body, request_id, patience_s)
        except (OSError, EOFError) as error:
            connection.close()
            reply = None
            soaked.wrong.append(f"{request_id} {short.path}: {error!r}")
        soaked.fates[request_id] = _fate(reply)
        if reply is None and patience_s == TIMEOUT_S:
            soaked.wrong.append(f"{request_id} {short.path}: no answer")
        elif reply is not None and not short.is_answered_by(reply):
            said = reply.body[-200:].decode(errors="replace")
            soaked.wrong.append(f"{request_id} {short.path}: {reply.status} {said}")
    connection.close()


def _fate(reply: Reply | None) -> Fate:
    if reply is None:
        return "left"
    return "whole" if reply.status == 200 else "refused"


async def _settled_books(server: Server, soaked: Soaked) -> list[Line]:
    """Return what the books say once they agree, or what they still say after some time: some are closed later."""

    async def look() -> list[Line]:
        return compared(server.folder, await server.metrics(), soaked.fates)

    return await settled(look, lambda lines: all(line.agrees for line in lines))


def _wrong(soaked: Soaked) -> list[str]:
    wrong = [f"{line.name}: the books differ" for line in soaked.books if not line.agrees]
    assert soaked.at_first is not None
    assert soaked.at_last is not None
    wrong += soaked.memory.growth()
    return wrong + soaked.at_first.unrest() + soaked.at_last.beyond(soaked.at_first)


def _orphans(server: Server) -> list[int]:
    """Find processes that still have to do with the server's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(server.folder) in word for word in process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def _progress(number: int, soaked: Soaked) -> str:
    sent, memory = len(soaked.fates), soaked.memory
    return (
        f"round {number + 1}: {sent} requests, {soaked.kills} kills, {sent / soaked.seconds:.0f}/s,"
        f" API process {memory.api[-1]:.1f} MiB, engine at most {memory.engine[-1]:.1f} MiB"
    )
