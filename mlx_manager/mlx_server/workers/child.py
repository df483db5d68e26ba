"""A child process as the operating system has it: what it prints, how it is ended, and how it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

# For a traceback to be written and read.
STACKS_S = 0.5


async def read_line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line; empty at the end. A reader that gave up would block a process that goes on printing."""
    try:
        return await stream.readline()
    except ValueError:
        return b"(a line too long to show)\n"


def kill(process: asyncio.subprocess.Process) -> None:
    """End a process that may have ended already."""
    # Not `process.kill`: it may reap the process, and the event loop would then report status 255 for any end.
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)


async def tell_stacks(process: asyncio.subprocess.Process) -> None:
    """Have an engine that hangs print where each of its threads is, for the log; returns in half a second."""
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            os.kill(process.pid, signal.SIGUSR1)
            await asyncio.sleep(STACKS_S)


def how_it_ended(returncode: int) -> str:
    """Return the end of a process in words that follow its name."""
    return (
        f"was killed by signal {-returncode}"
        if returncode < 0
        else f"ended with status {returncode}"
    )
