"""What holding answers to a grammar costs per token: `python -m benchmarks.grammar`.

The same prompts on the same engine of a model whose step takes a millisecond, free and held, in turns: a round measures
both, and the next one goes backwards. The grammar of each held row is known already, so compiling isn't in it. CPU
time, which other work on the machine changes least.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from benchmarks.models import make_model
from mlx_manager.mlx_server.engine.blas_threads import BlasThreads
from mlx_manager.mlx_server.engine.engine import Engine
from mlx_manager.mlx_server.engine.grammar import Vocabulary
from mlx_manager.mlx_server.engine.grammar_compiler import GrammarCompiler
from mlx_manager.mlx_server.engine.loading import load
from mlx_manager.mlx_server.engine.messages import Constraint, SamplingParameters, Submit
from mlx_manager.mlx_server.engine.runner import Runner
from mlx_manager.mlx_server.engine.scheduler import Limits, Scheduler

PROMPT_TOKENS = 64
OUTPUT_TOKENS = 96
WIDTHS = (1, 8, 32)
# None of their texts ends within an answer, so free and held answers have as many tokens.
ROW = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 200},
        "numbers": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["name", "numbers"],
}
GRAMMARS = {
    "expression": "start: /[a-z0-9 ]{500,}/",
    "array of numbers": "start: %json "
    + json.dumps({"type": "array", "items": {"type": "integer"}, "minItems": 500}),
    "array of objects": "start: %json "
    + json.dumps({"type": "array", "items": ROW, "minItems": 500}),
}


class Loop:
    """An engine that answers, with nothing around it."""

    def __init__(self, path: Path) -> None:
        loaded = load(path)
        self._end = [int(json.loads((path / "config.json").read_text())["eos_token_id"])]
        self._ids = itertools.count(1)
        grammars = GrammarCompiler(Vocabulary(path))
        limits = Limits(max(WIDTHS), 512, 2048, token_gap_ns=10**12)
        runner = Runner(loaded.model, limits.max_batch)
        threads = BlasThreads(loaded.ready.weights_bytes)
        self._engine = Engine(runner, Scheduler(limits), threads, grammars=grammars)

    def us_per_token(self, grammar: str | None, width: int) -> float:
        """Answer `width` prompts at once and return the CPU time of each token, from the first one of all rows on."""
        constraint = None if grammar is None else Constraint(grammar)
        for row in range(width):
            prompt = [5 + (row * 31 + at) % 250 for at in range(PROMPT_TOKENS)]
            self._engine.handle(
                Submit(
                    next(self._ids),
                    prompt,
                    OUTPUT_TOKENS,
                    self._end,
                    SamplingParameters(),
                    constraint=constraint,
                )
            )
        return self._timed(width)

    def _timed(self, width: int) -> float:
        ended, tokens, began_s = 0, 0, 0.0
        while ended < width:
            if not self._engine.has_work:
                time.sleep(0.001)
                continue
            step = self._engine.step()
            rows = len(step.tokens) // 2
            if began_s:
                tokens += rows
            elif rows == width:
                began_s = time.process_time()
            for one in step.ended:
                assert one.reason == "length", f"an answer ended with {one.reason}: {one.detail}"
            ended += len(step.ended)
        return (time.process_time() - began_s) / tokens * 1e6


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grammar", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    table = Table(
        *(
            Column(name, justify="right")
            for name in ("rows", "free CPU µs/token", "held CPU µs/token")
        ),
        *(Column(name, justify="right") for name in ("held / free", "from … to", "more per token")),
        Column("grammar"),
    )
    with tempfile.TemporaryDirectory(prefix="mlx-manager-grammar-") as folder:
        loop = Loop(make_model(Path(folder), "tiny"))
        for width, (name, grammar) in itertools.product(WIDTHS, GRAMMARS.items()):
            table.add_row(*_measured(loop, width, grammar, options.rounds), name)
    Console(width=120).print(table)
    return 0


def _measured(loop: Loop, width: int, grammar: str, rounds: int) -> tuple[str, ...]:
    loop.us_per_token(None, width)
    loop.us_per_token(grammar, width)
    pairs = list[tuple[float, float]]()
    for number in range(rounds):
        asked = (None, grammar) if number % 2 == 0 else (grammar, None)
        measured = {which: loop.us_per_token(which, width) for which in asked}
        pairs.append((measured[None], measured[grammar]))
    free, held = (statistics.median(one) for one in zip(*pairs, strict=True))
    ratios = sorted(held_us / free_us for free_us, held_us in pairs)
    return (
        str(width),
        f"{free:,.0f}",
        f"{held:,.0f}",
        f"{statistics.median(ratios):.2f}",
        f"{ratios[0]:.2f} … {ratios[-1]:.2f}",
        f"{held - free:+,.0f} µs",
    )


if __name__ == "__main__":
    sys.exit(main())
