"""What attention over quantised keys and values costs: `python -m benchmarks.kv_bits`.

One decode step's attention of one layer, of rows of equal length, whole and with 8 and 4 bits, in turns. The keys and
values of the step are quantised, too, as they would be in a cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import mlx.core as mx
from mlx_lm.models.base import quantized_scaled_dot_product_attention
from rich.console import Console
from rich.table import Table

HEADS, KV_HEADS, HEAD_DIM = 16, 8, 64
GROUP = 64
SIZES = ((1, 2_048), (1, 8_192), (16, 2_048), (16, 8_192))
BITS = (8, 4)
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
