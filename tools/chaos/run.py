"""Inflict every fault on one server after another and say what was sent, what survived and what was lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tools.chaos.clients import crowd
from tools.chaos.faults import (
    FAULTS,
    STREAMS,
    TOKENS,
    Fault,
    Tally,
    compared,
    inflict,
    kill_engine_of_one,
    kill_server,
    stop_gently,
)
from tools.chaos.kept import Kept, count_rows
from tools.chaos.server import PREFIX_FILES, Server

GRACE_S = 5.0
COLUMNS = ("sent", "whole", "refused", "told", "lost", "different", "rows kept", "rows lost")


async def run(
    folder: Path, say: Callable[[str], None], faults: Sequence[Fault] = FAULTS
) -> list[Tally]:
    """Return a tally for each fault, for a stream that is alone, for a killed server and for an orderly stop.

    `say` is told each as it comes.
    """
    tallies = list[Tally]()
    kept = Kept()

    async def note(doing: Awaitable[Tally]) -> None:
        nonlocal kept
        tally = await doing
        kept = await count_rows(server, tally, kept)
        tallies.append(tally)
        say(line(tally))

    async with Server(
        folder,
        # One more, so that what makes trouble is computed beside the streams.
        max_batch=STREAMS + 1,
        max_waiting=2 * STREAMS,
        stall_timeout_s=3,
        # However slow the machine is, pieces of a long prompt stay large: what it takes at once goes by them.
        token_gap_ms=10_000,
        shutdown_timeout_s=GRACE_S,
        prefix_disk_mib=64,
        prefix_disk_path=folder / PREFIX_FILES,
    ) as server:
        expected = await crowd(server, STREAMS, TOKENS)
        before = compared("before", expected, expected)
        kept = await count_rows(server, before, kept)
        if before.fates["whole"] < STREAMS or before.wrong:
            raise AssertionError(f"without any fault: {before.wrong or expected}")
        say(header())
        for fault in faults:
            await note(inflict(server, fault, expected))
        await note(kill_engine_of_one(server))
        await _settled(server, tallies[-1])
        await note(kill_server(server))
        await note(stop_gently(server, GRACE_S, expected))
    return tallies


async def _settled(server: Server, last: Tally) -> None:
    """After all of it the server knows of nothing that still runs."""
    figures = await server.figures()
    for name in ("mlx_requests_active", "mlx_engine_row_difference", "mlx_circuit_open"):
        if figures.get(name) != 0:
            last.wrong.append(f"{name} is {figures.get(name)} in the end")


def header() -> str:
    """Return the first line of the report."""
    return f"{'':28}" + "".join(f"{name:>11}" for name in COLUMNS)


def line(tally: Tally) -> str:
    """Return one line of the report, with what is wrong below it."""
    fates = tally.fates
    numbers = (
        tally.sent,
        fates["whole"],
        fates["refused"],
        fates["told"],
        fates["lost"],
        tally.different,
        tally.rows_kept,
        tally.rows_lost,
    )
    row = f"{tally.name:28}" + "".join(f"{number:>11}" for number in numbers)
    return "\n".join([row, *(f"  ! {text}" for text in tally.wrong)])
