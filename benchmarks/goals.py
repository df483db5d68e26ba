"""What the figures are to reach, and whether they do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.compare import MLX_LM_STREAMED, OURS, OURS_STREAMED
from benchmarks.contended import Contended
from benchmarks.figures import Figures, MemoryFigures, TelemetryPart, percentile
from benchmarks.followup import FollowUp
from benchmarks.telemetry import OFF, SPANS, STORE
from benchmarks.work import ModelName

# From so many clients up, this share of the bare loop's tokens per second.
SHARE_OF_BARE: dict[ModelName, tuple[int, float]] = {"small": (4, 0.95), "tiny": (1, 0.90)}
TIMES_MLX_LM = 1.3
TIMES_MLX_LM_CLIENTS = (16, 32)
# On a model whose steps are long every server waits for the model, and none can be much faster than another.
TIMES_MLX_LM_MODEL: ModelName = "tiny"
EXTRA_CPU_US_PER_TOKEN = 60.0
EXTRA_CPU_CLIENTS = 32
TELEMETRY_SHARE = 0.02
# What every installation has; who sends spans elsewhere, too, has asked for more.
TELEMETRY_GOALS = {
    (STORE, OFF): "telemetry into the store: cost in throughput",
    (STORE, SPANS): "writing to the store: cost in throughput",
}
CONTENDED_PIECES = 1.5
# Of the cold first token, behind a prompt of 2,000 tokens and more.
WARM_SHARE, RESTARTED_SHARE = 0.1, 0.2
FOLLOWUP_TOKENS = 2_000
# A leak of a quarter of a KiB a request shows; what the allocator moves back and forth does not.
MEMORY_GROWTH_MIB = 2.0


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure against what it is to be; `is_met` says on which side it is."""

    name: str
    wanted: str
    got: str
    is_met: bool


def comparison_goals(rows: Sequence[Figures]) -> Iterator[Goal]:
    """Yield the goals of all rows that have one."""
    by_key = {(row.model, row.work, row.clients, row.contender): row for row in rows}
    for row in rows:
        if row.contender not in (OURS, OURS_STREAMED):
            continue
        place = f"{row.model}, {row.work}, {row.clients} clients, {row.contender}"
        first, share = SHARE_OF_BARE[row.model]
        if row.clients >= first:
            yield at_least(f"{place}: share of the bare loop", row.ratio.median, share)
        if row.clients == EXTRA_CPU_CLIENTS:
            yield _cpu_goal(place, row)
        theirs = by_key.get((row.model, row.work, row.clients, MLX_LM_STREAMED))
        if row.contender == OURS_STREAMED and theirs is not None and _is_raced(row):
            times = row.ratio.median / theirs.ratio.median if theirs.ratio.median else math.inf
            yield at_least(f"{place}: times mlx_lm.server, streamed", times, TIMES_MLX_LM)


def telemetry_goals(part: TelemetryPart) -> Iterator[Goal]:
    """Yield whether the telemetry that every installation has is cheap enough."""
    for row in part.rows:
        if name := TELEMETRY_GOALS.get((row.telemetry, row.against)):
            cost = 1 - row.throughput_ratio.median
            yield Goal(
                f"{part.model}, {name}",
                f"< {TELEMETRY_SHARE:.0%}",
                f"{cost:.1%}",
                cost < TELEMETRY_SHARE,
            )


def contended_goals(rows: Sequence[Contended]) -> Iterator[Goal]:
    """Yield whether a short request waits for little more than what it finds under way."""
    for row in rows:
        first_s = percentile(row.beside_s, 0.5)
        if first_s is not None and row.piece_s is not None:
            pieces = first_s / row.piece_s
            name = f"{row.server}: first token beside {row.long_words:,} words, in pieces of those"
            yield Goal(
                name, f"<= {CONTENDED_PIECES:g}", f"{pieces:.2f}", pieces <= CONTENDED_PIECES
            )


def followup_goals(rows: Sequence[FollowUp]) -> Iterator[Goal]:
    """Yield whether MLX Manager doesn't read again what was read before."""
    for row in rows:
        if row.tokens < FOLLOWUP_TOKENS or row.contender != OURS:
            continue
        shares = {
            "warm": (row.warm_s, WARM_SHARE),
            "after a restart": (row.restart_s, RESTARTED_SHARE),
        }
        for name, (later_s, wanted) in shares.items():
            share = median(row.ratios(later_s))
            place = f"{row.model}, {row.tokens} tokens, first token {name}: share of the cold one"
            yield Goal(place, f"<= {wanted:g}", f"{share:.2f}", share <= wanted)


def memory_goal(figures: MemoryFigures) -> Goal:
    """Return whether a process keeps its size."""
    return Goal(
        f"memory of the {figures.process} process, growth over {figures.requests} requests",
        f"<= {MEMORY_GROWTH_MIB:g} MiB",
        f"{figures.growth_mib:.2f} MiB",
        figures.growth_mib <= MEMORY_GROWTH_MIB,
    )


def failures_goal(failures: int, requests: int) -> Goal:
    """Return whether every answer was right; figures of a run with wrong ones mean nothing."""
    return Goal(f"wrong answers among {requests}", "0", str(failures), failures == 0)


def at_least(name: str, value: float, wanted: float) -> Goal:
    """Return a goal that is met from `wanted` up."""
    return Goal(name, f">= {wanted:.2f}", f"{value:.2f}", value >= wanted)


def _cpu_goal(place: str, row: Figures) -> Goal:
    extra_us = row.extra_cpu_us_per_token.median
    return Goal(
        f"{place}: CPU per token beyond the bare loop",
        f"<= {EXTRA_CPU_US_PER_TOKEN:g} µs",
        f"{extra_us:.0f} µs",
        extra_us <= EXTRA_CPU_US_PER_TOKEN,
    )


def _is_raced(row: Figures) -> bool:
    return row.model == TIMES_MLX_LM_MODEL and row.clients in TIMES_MLX_LM_CLIENTS
