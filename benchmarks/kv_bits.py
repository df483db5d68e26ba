"""What quantised keys and values cost and save: `python -m benchmarks.kv_bits`.

First one decode step's attention of one layer, of rows of equal length, whole and with 8 and 4 bits, in turns; the keys
and values of the step are quantised, too, as they are in a cache. Then answers of an engine of the `small` model with
nothing around it, to as many long prompts as it has rows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.base import quantized_scaled_dot_product_attention
from rich.console import Console
from rich.table import Table

from benchmarks.models import make_model
from mlx_manager.mlx_server.engine.blas_threads import BlasThreads
from mlx_manager.mlx_server.engine.engine import Engine
from mlx_manager.mlx_server.engine.kv_bits import quantise_kv
from mlx_manager.mlx_server.engine.loading import load
from mlx_manager.mlx_server.engine.messages import SamplingParameters, Submit
from mlx_manager.mlx_server.engine.runner import Runner
from mlx_manager.mlx_server.engine.scheduler import Limits, Scheduler

HEADS, KV_HEADS, HEAD_DIM = 16, 8, 64
GROUP = 64
SIZES = ((1, 2_048), (1, 8_192), (16, 2_048), (16, 8_192))
BITS = (8, 4)
PROMPT_TOKENS, OUTPUT_TOKENS = 2_000, 64
ROWS = (1, 4)
Attend = Callable[[], mx.array]


def main() -> None:
    """Measure, and print milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    table = Table("rows", "columns", "float32 ms", *(f"{bits} bits" for bits in BITS))
    for rows, columns in SIZES:
        whole, *quantised = _measured(rows, columns, rounds)
        shares = (f"{ms:.2f} ms, {ms / whole:.2f} times" for ms in quantised)
        table.add_row(str(rows), str(columns), f"{whole:.2f}", *shares)
    Console().print(table)
    with tempfile.TemporaryDirectory(prefix="mlx-manager-kv-bits-") as folder:
        Console().print(_answers(Path(folder), max(rounds // 5, 2)))


@dataclass(frozen=True, slots=True)
class Answers:
    """How long an engine read its prompts, the tokens a second that it made then, and what they took in the end."""

    read_s: float
    tokens_per_s: float
    kv_bytes: int


class Loop:
    """An engine of a model whose keys and values have so many bits; None: they are whole."""

    def __init__(self, path: Path, bits: int | None) -> None:
        loaded = load(path)
        if bits is not None:
            quantise_kv(loaded.model, bits)
        runner, limits = Runner(loaded.model, max(ROWS)), Limits(max(ROWS), 512, 2048, 10**15)
        self._engine = Engine(runner, Scheduler(limits), BlasThreads(loaded.ready.weights_bytes))
        self._asked = 0

    def answers(self, rows: int) -> Answers:
        """Answer so many prompts at once."""
        for _ in range(rows):
            self._asked += 1
            prompt = [5 + (self._asked * 31 + at * at) % 250 for at in range(PROMPT_TOKENS)]
            submit = Submit(self._asked, prompt, OUTPUT_TOKENS, [], SamplingParameters())
            self._engine.handle(submit)
        began_s, made, kv_bytes, all_read_s = time.perf_counter(), dict[int, int](), 0, 0.0
        ended = made_before = 0
        while ended < rows:
            step = self._engine.step()
            for sequence_id in step.tokens[::2]:
                made[sequence_id] = made.get(sequence_id, 0) + 1
            ended += len(step.ended)
            if not all_read_s and len(made) == rows:
                all_read_s, made_before = time.perf_counter(), sum(made.values())
                kv_bytes = self._engine.vitals().kv_bytes or 0
        decoded = rows * OUTPUT_TOKENS - made_before
        took_s = time.perf_counter() - all_read_s
        return Answers(all_read_s - began_s, decoded / took_s, kv_bytes)


def _answers(folder: Path, rounds: int) -> Table:
    """Measure engines in turns, and return a table of medians and ratios to the one with whole keys and values."""
    path = make_model(folder, "small")
    loops = {bits: Loop(path, bits) for bits in (None, *BITS)}
    table = Table("rows", "bits", "prompts read in s", "tokens/s", "of whole", "MiB", "of whole")
    for rows in ROWS:
        found: dict[int | None, list[Answers]] = {bits: [] for bits in loops}
        for number in range(rounds + 1):
            for bits in loops if number % 2 else reversed(loops):
                answers = loops[bits].answers(rows)
                if number:  # the first of all warms up
                    found[bits].append(answers)
        whole = found[None]
        for bits, own in found.items():
            speeds = (a.tokens_per_s / b.tokens_per_s for a, b in zip(own, whole, strict=True))
            table.add_row(
                str(rows),
                "whole" if bits is None else str(bits),
                f"{statistics.median(one.read_s for one in own):.2f}",
                f"{statistics.median(one.tokens_per_s for one in own):,.0f}",
                f"{statistics.median(speeds):.2f}",
                f"{own[0].kv_bytes / 2**20:.1f}",
                f"{own[0].kv_bytes / whole[0].kv_bytes:.2f}",
            )
    return table


def _measured(rows: int, columns: int, rounds: int) -> list[float]:
    """Return the median ms of each way."""
    ways = _ways(rows, columns)
    times: list[list[float]] = [[] for _ in ways]
    for number in range(rounds + 1):
        order = range(len(ways)) if number % 2 else reversed(range(len(ways)))
        for index in order:
            began = time.perf_counter()
            mx.eval(ways[index]())
            if number:  # the first of all warms up
                times[index].append((time.perf_counter() - began) * 1000)
    return [statistics.median(one) for one in times]


def _ways(rows: int, columns: int) -> list[Attend]:
    queries = mx.random.normal((rows, HEADS, 1, HEAD_DIM))
    fresh = mx.random.normal((rows, KV_HEADS, 1, HEAD_DIM))
    keys, values = (mx.random.normal((rows, KV_HEADS, columns, HEAD_DIM)) for _ in range(2))
    scale = HEAD_DIM**-0.5
    stored = {
        bits: tuple(mx.quantize(one, group_size=GROUP, bits=bits) for one in (keys, values))
        for bits in BITS
    }
    mx.eval(queries, fresh, keys, values, stored)

    def whole() -> mx.array:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=None)

    def quantised(bits: int) -> Attend:
        def attend() -> mx.array:
            q_keys, q_values = stored[bits]
            added = [mx.quantize(fresh, group_size=GROUP, bits=bits) for _ in range(2)]
            mx.eval(added)
            return quantized_scaled_dot_product_attention(
                queries, q_keys, q_values, scale=scale, mask=None, group_size=GROUP, bits=bits
            )

        return attend

    return [whole, *map(quantised, BITS)]


if __name__ == "__main__":
    main()
