"""Start engine processes in tests, and see what they leave behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil

from mlx_manager.mlx_server.engine.messages import SamplingParameters, Submit
from mlx_manager.mlx_server.workers.process import EngineOptions, EngineProcess
from mlx_manager.mlx_server.workers.stream import TokenStream
from tests.support.running import eventually

# Engine processes of this test process: a loaded machine may take long to start one.
OPTIONS = EngineOptions(max_batch=4, max_waiting=4, load_timeout_s=120)
ENDLESS_TOKENS = 1_000_000
PROMPT = list(range(40, 80))


@asynccontextmanager
async def started(path: Path, **changes: object) -> AsyncIterator[EngineProcess]:
    """An engine process over the model in `path`; ended with the block."""
    engine = await EngineProcess.start("test/model", path, replace(OPTIONS, **changes))  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        await engine.stop()


def ask(
    engine: EngineProcess,
    max_tokens: int = ENDLESS_TOKENS,
    prompt: list[int] = PROMPT,
    sampling: SamplingParameters | None = None,
) -> TokenStream:
    """Submit a prompt whose answer ends with `max_tokens` and not before."""
    return engine.generate(Submit(0, prompt, max_tokens, [], sampling or SamplingParameters()))


async def read(stream: TokenStream) -> list[int]:
    """Read a stream to its end."""
    async with stream:
        return [token_id async for token_ids in stream for token_id in token_ids]


def engine_pids() -> set[int]:
    """Child processes of this one that are engines and are not just waiting to be reaped."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if "mlx_manager.mlx_server.engine" in child.cmdline():
                found.add(child.pid)
        except psutil.Error:
            continue
    return found


def runs(pid: int) -> bool:
    """Whether there is such a process, and more of it than an exit status."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(pid: int | None, number: signal.Signals = signal.SIGKILL) -> None:
    assert pid is not None
    os.kill(pid, number)


async def has_gone(pid: int | None) -> None:
    assert pid is not None
    await eventually(lambda: not runs(pid))


async def leaves_nothing_behind(work: Callable[[], AsyncIterator[None]]) -> None:
    """Run both halves of `work`, which yields nothing, and see that processes, tasks and descriptors are as before."""
    me = psutil.Process()
    tasks, descriptors, engines = asyncio.all_tasks(), me.num_fds(), engine_pids()
    async for _ in work():
        pass
    await eventually(lambda: asyncio.all_tasks() <= tasks)
    await eventually(lambda: me.num_fds() <= descriptors)
    assert engine_pids() <= engines
