"""What prompt lookup saves a single answer: `python -m benchmarks.lookup`.

The same prompts on two engines of the same model, one of which looks its next tokens up, in turns: a round measures
both, and the next one goes backwards. Greedy answers of a model with random weights repeat themselves soon; answers
drawn at temperature 1 repeat a few tokens by chance and go on in another way, which is the worst there is to look up.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from benchmarks.models import make_model
from benchmarks.work import MODEL_NAMES
from mlx_manager.mlx_server.engine.blas_threads import BlasThreads
from mlx_manager.mlx_server.engine.engine import Engine
from mlx_manager.mlx_server.engine.loading import load
from mlx_manager.mlx_server.engine.messages import SamplingParameters, Stamps, Submit
from mlx_manager.mlx_server.engine.runner import Runner
from mlx_manager.mlx_server.engine.scheduler import Limits, Scheduler

PROMPT_TOKENS = 64
OUTPUT_TOKENS = 256
LOOKUP_TOKENS = 8
SAMPLINGS = {
    "repeats itself": SamplingParameters(),
    "repeats by chance": SamplingParameters(temperature=1.0, seed=11),
}


class Loop:
    """An engine that answers one prompt at a time, with nothing around it."""

    def __init__(self, path: Path, lookup_tokens: int) -> None:
        loaded = load(path)
        runner = Runner(loaded.model, 1, lookup_tokens=lookup_tokens)
        limits = Limits(1, 512, 2048, token_gap_ns=10**12)
        self._engine = Engine(runner, Scheduler(limits), BlasThreads(loaded.ready.weights_bytes))
        self._ids = itertools.count(1)

    def answer(self, seed: int, sampling: SamplingParameters) -> tuple[float, list[int], Stamps]:
        """Return an answer's tokens a second from the first one on, the tokens, and the engine's record."""
        prompt = [5 + (seed * 31 + at * at) % 250 for at in range(PROMPT_TOKENS)]
        self._engine.handle(Submit(next(self._ids), prompt, OUTPUT_TOKENS, [], sampling))
        tokens, began_s = list[int](), 0.0
        while True:
            step = self._engine.step()
            tokens += step.tokens[1::2]
            began_s = began_s or (time.perf_counter() if tokens else 0.0)
            for ended in step.ended:
                took_s = time.perf_counter() - began_s
                return len(tokens) / took_s, tokens, ended.stamps


def main() -> int:
    """Measure and print; return 1 when any two answers differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lookup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    columns = ("tokens/s without", "with", "with / without", "from … to", "proposed", "accepted")
    table = Table("model", "answer", *(Column(name, justify="right") for name in columns))
    is_equal = True
    with tempfile.TemporaryDirectory(prefix="mlx-manager-lookup-") as folder:
        for model in MODEL_NAMES:
            path = make_model(Path(folder), model)
            loops = [Loop(path, 0), Loop(path, LOOKUP_TOKENS)]
            for name, sampling in SAMPLINGS.items():
                figures, same = _measured(loops, sampling, options.rounds)
                table.add_row(model, name, *figures)
                is_equal = is_equal and same
    Console(width=120).print(table)
    print("all answers are the same" if is_equal else "ANSWERS DIFFER")
    return 0 if is_equal else 1


def _measured(
    loops: list[Loop], sampling: SamplingParameters, rounds: int
) -> tuple[tuple[str, ...], bool]:
    speeds: list[list[float]] = [[], []]
    proposed, accepted, is_equal = 0, 0, True
    for number in range(rounds + 1):
        tokens: list[list[int]] = [[], []]
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            speed, tokens[which], stamps = loops[which].answer(number, sampling)
            if number:  # the first round warms up
                speeds[which].append(speed)
                proposed += stamps.proposed_tokens
                accepted += stamps.accepted_tokens
        is_equal = is_equal and tokens[0] == tokens[1]
    ratios = sorted(faster / usual for usual, faster in zip(*speeds, strict=True))
    figures = (
        *(f"{statistics.median(one):,.0f}" for one in speeds),
        f"{statistics.median(ratios):.2f}",
        f"{ratios[0]:.2f} … {ratios[-1]:.2f}",
        f"{proposed / rounds:.0f}",
        f"{accepted / rounds:.0f}",
    )
    return figures, is_equal


if __name__ == "__main__":
    sys.exit(main())
