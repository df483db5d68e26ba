"""Faults inside the processes of a server: Python imports this by itself from a folder in `PYTHONPATH`.

In engine processes a prompt with one of three pairs of tokens side by side makes the model end its process, hang, or
raise while it is read; what is decoded comes one token at a time and has no pairs. With a fourth it never gets its
turn. In all others the wall clock goes by
the seconds that stand in the file which `CHAOS_CLOCK` names, and SIGUSR2 has the tasks of the event loop counted into
the one that `CHAOS_TASKS` names.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ABORT = (501, 502)
HANG = (503, 504)
RAISE = (505, 506)
WAIT = (507, 508)


def break_engine() -> None:
    """Make the model of the tests break at these tokens."""
    from mlx_manager.mlx_server.engine.absent import left_out

    with left_out():
        from mlx_lm.models.qwen3 import Model
    from mlx_manager.mlx_server.engine.scheduler import Scheduler

    computed, obstacle = Model.__call__, Scheduler._obstacle

    def faulty(self: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        for row in inputs.tolist():
            pairs = set(pairwise(row))
            if ABORT in pairs:
                os.abort()
            if HANG in pairs:
                time.sleep(3600)
            if RAISE in pairs:
                raise RuntimeError("planned")
        return computed(self, inputs, *rest, **more)

    def forgetful(self: Scheduler, sequence: Any) -> Any:
        is_forgotten = WAIT in pairwise(sequence.submit.token_ids)
        return "places" if is_forgotten else obstacle(self, sequence)

    Scheduler._obstacle = forgetful  # type: ignore[method-assign]
    Model.__call__ = faulty  # type: ignore[method-assign]


def move_clock(file: Path) -> None:
    """Add to the time what stands in the file, at each look."""
    real_s, real_ns = time.time, time.time_ns

    def shift_s() -> float:
        return float(file.read_text() or 0) if file.exists() else 0.0

    time.time = lambda: real_s() + shift_s()
    time.time_ns = lambda: real_ns() + round(shift_s() * 1e9)


def count_tasks(file: Path) -> None:
    """Write how many tasks there are at each SIGUSR2."""

    def count(_number: int, _frame: object) -> None:
        file.write_text(str(len(asyncio.all_tasks())))

    signal.signal(signal.SIGUSR2, count)


if "mlx_manager.mlx_server.engine" in sys.orig_argv:
    break_engine()
elif "CHAOS_CLOCK" in os.environ:
    move_clock(Path(os.environ["CHAOS_CLOCK"]))
    count_tasks(Path(os.environ["CHAOS_TASKS"]))
