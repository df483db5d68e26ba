"""What is done to a server while clients wait for it, and what may become of their answers."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mlx_manager.cli import CLOSING_S
from mlx_manager.observability import attributes as names
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.summary import TraceFilter
from tools.chaos.books import Fate, samples
from tools.chaos.clients import Heard, complete, crowd
from tools.chaos.inside.sitecustomize import ABORT, HANG
from tools.chaos.server import PREFIX_FILES, Server

STREAMS = 16
TOKENS = 500
TRIES = 3
BUSY_S = 60.0
LOCKED_S = 3.0
# So much more may engine processes have than with sixteen streams; the long prompt needs five times as much.
SPARE_BYTES = 24 * 2**20
LONG_TOKENS = 12_000
# Several at a time are made in no time.
ALONE_TOKENS = 4_000
GIVEN_UP = frozenset({"request_ends_engine", "request_breaks_batch"})
# Spans are stored once a second.
TRACED_S = 2.0


@dataclass(slots=True)
class Tally:
    """What became of the answers; `different` are those of the whole ones that are not as without the fault."""

    name: str
    fates: Counter[Fate]
    different: int = 0
    # In the audit log, also of what was asked to make the trouble.
    rows_kept: int = 0
    rows_lost: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """How many requests there were."""
        return sum(self.fates.values())


@dataclass(frozen=True, slots=True)
class Fault:
    """`trouble` is made while all clients are in their answers; `allowed` is what may become of those."""

    name: str
    trouble: Callable[[Server], Awaitable[None]]
    allowed: frozenset[Fate] = frozenset({"whole"})


async def inflict(server: Server, fault: Fault, expected: list[Heard]) -> Tally:
    """Have sixteen clients ask, make trouble in the middle, and see what they heard."""
    asking = await begun(server, STREAMS, TOKENS)
    await fault.trouble(server)
    tally = compared(fault.name, await asking, expected)
    tally.wrong += [f"{fate}: {n}" for fate, n in tally.fates.items() if fate not in fault.allowed]
    return tally


def compared(name: str, heard: list[Heard], expected: list[Heard]) -> Tally:
    """Count fates, and the whole answers that are not the expected ones."""
    tally = Tally(name, Counter(one.fate for one in heard))
    pairs = [(now, before) for now, before in zip(heard, expected, strict=True) if now.is_whole]
    others = [now for now, before in pairs if now.text != before.text]
    tally.different = len(others)
    # What is read again in one piece is rounded otherwise, in the seventh digit. The two choices that are closest in
    # all of these answers differ in the fifth.
    if others:
        tally.wrong.append(f"{len(others)} answers are not as they would have been")
    if any(now.tokens != before.tokens for now, before in pairs):
        tally.wrong.append("tokens are counted otherwise")
    return tally


async def begun(server: Server, count: int, max_tokens: int) -> asyncio.Task[list[Heard]]:
    """Have so many clients ask, and return when all of them are in the middle of their answers.

    On a busy machine the first may have ended before the last has begun; then they ask again.
    """
    for _ in range(TRIES):
        asking = asyncio.create_task(crowd(server, count, max_tokens))
        if await _is_busy(server, count, asking):
            await asyncio.sleep(0.15)
            return asking
        fates = Counter(one.fate for one in await asking)
        if fates != Counter(whole=count):
            raise AssertionError(f"without any trouble: {dict(fates)}")
    raise TimeoutError(f"{TRIES} times there were no {count} requests in the engine at once")


async def _is_busy(server: Server, requests: int, asking: asyncio.Task[list[Heard]]) -> bool:
    """Wait until so many are in the engine; False when they won't be any more."""
    end_s = time.monotonic() + BUSY_S
    while not asking.done():
        if await server.active() >= requests:
            return True
        if time.monotonic() > end_s:
            raise TimeoutError(f"no {requests} requests came to the engine")
        await asyncio.sleep(0.01)
    return False


async def kill_engine(server: Server) -> None:
    """Kill -9."""
    server.send_engines(signal.SIGKILL)


async def kill_engine_twice(server: Server) -> None:
    """Kill it, and the one that takes its place."""
    [first] = server.engines
    first.kill()
    for _ in range(2000):
        if any(engine.pid != first.pid for engine in server.engines):
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.0)
    server.send_engines(signal.SIGKILL)


async def abort_engine(server: Server) -> None:
    """What an allocation that fails inside the device's driver does."""
    server.send_engines(signal.SIGABRT)


async def hang_engine(server: Server) -> None:
    """It says nothing any more."""
    server.send_engines(signal.SIGSTOP)


async def poison(server: Server) -> None:
    """One more request, whose prompt ends each engine process that reads it."""
    await _expect_given_up(server, [40, 41, *ABORT, 42])


async def hanging_prompt(server: Server) -> None:
    """One more request, in whose prompt each engine process hangs."""
    await _expect_given_up(server, [40, 41, *HANG, 42])


async def exhaust_memory(server: Server) -> None:
    """One more request, for whose prompt no engine process can get the memory."""
    [engine], api = server.engines, psutil.Process(server.pid)
    limit = engine.memory_info().data + SPARE_BYTES
    # The next engine processes inherit it from the API process, which itself has far less.
    _limit_memory([api, engine], limit)
    try:
        request_id = await _expect_given_up(server, [token % 400 for token in range(LONG_TOKENS)])
    finally:
        _limit_memory([api], resource.RLIM_INFINITY)
        _limit_memory(api.children(), resource.RLIM_INFINITY)
    await _expect_traced(server, request_id)


def _limit_memory(processes: list[psutil.Process], limit: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.rlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


async def _expect_given_up(server: Server, prompt: list[int]) -> str:
    """Send a prompt, see that it is refused in the end, and return the id of the request."""
    answer = (await complete(server, prompt, 4)).json()
    if answer.get("error", {}).get("code") not in GIVEN_UP:
        raise AssertionError(f"a request that ends its engine each time was answered with {answer}")
    request_id: str = answer["error"]["request_id"]
    return request_id


async def _expect_traced(server: Server, request_id: str) -> None:
    """See that the trace of a request says that no engine process went on with it, and why."""
    await asyncio.sleep(TRACED_S)
    with TraceReader(server.folder / "traces.db") as reader:
        failed = reader.list_traces(TraceFilter(status="error")).traces
        traces = [reader.get_trace(one.trace_id) for one in failed if one.request_id == request_id]
    spans = [span for trace in traces if trace for span in trace.spans]
    resumed = [span for span in spans if span.name == names.SPAN_RESUME]
    if not any(
        span.status == "error" and names.RESUME_CAUSE in span.attributes for span in resumed
    ):
        raise AssertionError(f"the trace of {request_id} has {[span.name for span in spans]}")


async def lock_database(server: Server) -> None:
    """Somebody else writes, and takes their time."""
    with _locked(server.folder / "mlx.db"):
        await asyncio.sleep(LOCKED_S)


async def lock_traces(server: Server) -> None:
    """The same of the trace store: what is asked meanwhile is answered, and its trace comes later."""
    with _locked(server.folder / "traces.db"):
        answer = (await complete(server, [40, 41], 1)).raise_for_status()
        await asyncio.sleep(LOCKED_S)
    end_s = time.monotonic() + BUSY_S
    while not _has_trace(server, answer.headers["X-Trace-ID"]):
        if time.monotonic() > end_s:
            raise AssertionError("the trace of a request never came")
        await asyncio.sleep(0.1)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA busy_timeout = 10000")
        database.execute("BEGIN EXCLUSIVE")
        yield
        database.execute("ROLLBACK")


def _has_trace(server: Server, trace_id: str) -> bool:
    with TraceReader(server.folder / "traces.db") as reader:
        return reader.get_trace(trace_id) is not None


async def fill_disk(server: Server) -> None:
    """No file of the server can grow: its database, traces and prefix cache fail as on a full disk."""
    processes = [psutil.Process(server.pid), *server.engines]
    _, hard = processes[0].rlimit(resource.RLIMIT_FSIZE)
    for process in processes:
        process.rlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        await _expect_unwritten(server, range(2, 400))
        await asyncio.sleep(LOCKED_S)
    finally:
        for process in processes:
            process.rlimit(resource.RLIMIT_FSIZE, (hard, hard))


async def forbid_writing(server: Server) -> None:
    """The folders of database, traces and prefix cache become read-only."""
    kept = server.folder / PREFIX_FILES
    folders = [server.folder, kept, *(path for path in kept.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        await _expect_unwritten(server, range(400, 2, -1))
        await asyncio.sleep(LOCKED_S)
    finally:
        for folder in folders:
            folder.chmod(0o700)


async def _expect_unwritten(server: Server, prompt: range) -> None:
    """Have a prompt read that is worth a file, and see that the server says that it could not be written."""
    before = await _unwritten_files(server)
    (await complete(server, list(prompt), 1)).raise_for_status()
    end_s = time.monotonic() + BUSY_S
    while await _unwritten_files(server) == before:
        if time.monotonic() > end_s:
            raise AssertionError("every file could be written")
        await asyncio.sleep(0.1)


async def _unwritten_files(server: Server) -> int:
    failed = samples(await server.metrics(), "mlx_prefix_cache_files_total")
    return sum(round(value) for labels, value in failed if labels["outcome"] == "failed")


async def set_clock_back(server: Server) -> None:
    """By an hour, and forward again."""
    server.clock.write_text("-3600")
    await asyncio.sleep(1.0)
    server.clock.write_text("0")


async def overload(server: Server) -> None:
    """Far more requests than may wait."""
    heard = await crowd(server, 6 * STREAMS, 8)
    fates = Counter(one.fate for one in heard)
    if fates.keys() - {"whole", "refused"} or not fates["refused"]:
        raise AssertionError(f"overload ended in {dict(fates)}")


FAULTS = (
    Fault("nothing", lambda server: asyncio.sleep(0)),
    Fault("engine killed", kill_engine),
    Fault("engine killed twice", kill_engine_twice),
    Fault("engine aborts", abort_engine),
    Fault("engine hangs", hang_engine),
    Fault("a prompt that ends engines", poison),
    Fault("a prompt that hangs engines", hanging_prompt),
    Fault("memory exhausted", exhaust_memory),
    Fault("overload", overload),
    Fault("database locked", lock_database),
    Fault("traces locked", lock_traces),
    Fault("disk full", fill_disk),
    Fault("folder read-only", forbid_writing),
    Fault("clock set back", set_clock_back),
)


async def kill_engine_of_one(server: Server) -> Tally:
    """Kill -9 in an answer that is alone, and so looks its next tokens up; with 16 beside each other nobody does."""
    expected = await crowd(server, 1, ALONE_TOKENS)
    asking = await begun(server, 1, ALONE_TOKENS)
    await kill_engine(server)
    tally = compared("engine of one killed", await asking, expected)
    tally.wrong += [f"{fate}: {n}" for fate, n in tally.fates.items() if fate != "whole"]
    await asyncio.sleep(TRACED_S)
    spans = await asyncio.to_thread(_newest_spans, server)
    if names.SPAN_RESUME not in spans:
        tally.wrong.append("the trace says of no restart")
    if not spans.get(names.SPAN_DECODE, {}).get(names.DECODE_ACCEPTED_TOKENS):
        tally.wrong.append("nothing was looked up in what followed")
    return tally


def _newest_spans(server: Server) -> dict[str, Mapping[str, object]]:
    """Return the attributes of the newest trace's spans, by their names."""
    with TraceReader(server.folder / "traces.db") as reader:
        trace = reader.get_trace(reader.list_traces(TraceFilter()).traces[0].trace_id)
    assert trace is not None
    return {span.name: span.attributes for span in trace.spans}


async def stop_gently(server: Server, grace_s: float, expected: list[Heard]) -> Tally:
    """SIGTERM in the middle: what takes longer than `grace_s` is told so, and the process ends in its time."""
    asking = await begun(server, STREAMS, TOKENS)
    engines, began_s = server.engines, time.monotonic()
    server.send(signal.SIGTERM)
    status = await server.ended()
    took_s = time.monotonic() - began_s
    tally = compared("SIGTERM", await asking, expected)
    if tally.fates["lost"]:
        tally.wrong.append("answers were cut off without a word")
    if took_s > grace_s + CLOSING_S:
        tally.wrong.append(f"it took {took_s:.1f} s to end")
    if status not in (0, -signal.SIGTERM):
        tally.wrong.append(f"it ended with status {status}")
    tally.wrong += await _orphans(engines)
    return tally


async def kill_server(server: Server) -> Tally:
    """SIGKILL: engines end by themselves, the next start is clean and has to close the books of what was cut off."""
    asking = await begun(server, STREAMS, 3 * TOKENS)
    await asyncio.sleep(1.5)  # what is younger than a second may be missing in the books
    engines = server.engines
    os.kill(server.pid, signal.SIGKILL)
    await server.ended()
    tally = Tally("SIGKILL", Counter(one.fate for one in await asking))
    tally.wrong += await _orphans(engines)
    await server.start()
    return tally


async def _orphans(engines: list[psutil.Process]) -> list[str]:
    _, left = await asyncio.to_thread(psutil.wait_procs, engines, 10)
    left = [one for one in left if one.status() != psutil.STATUS_ZOMBIE]
    return [f"engine {one.pid} outlives its server" for one in left]
