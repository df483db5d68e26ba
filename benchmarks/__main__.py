"""Run the benchmarks: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.compare import compare
from benchmarks.contended import measure_contended, measure_longest
from benchmarks.figures import comparison_figures, memory_figures, telemetry_figures
from benchmarks.followup import measure_followups
from benchmarks.history import Earlier, NotAReport
from benchmarks.memory import REQUESTS, measure_memory
from benchmarks.report import WIDTH, Report, print_report
from benchmarks.rounds import Say
from benchmarks.telemetry import measure_telemetry
from benchmarks.work import CLIENT_COUNTS, MODEL_NAMES, QUICK_CLIENT_COUNTS, ModelName, WorkName

PARTS = (*MODEL_NAMES, "mixed", "contended", "contended-32k", "prefix", "telemetry", "memory")
DEFAULT_PARTS = (*MODEL_NAMES, "mixed", "contended", "prefix", "telemetry")
QUICK_PARTS = (*MODEL_NAMES, "telemetry")
ROUNDS, QUICK_ROUNDS = 5, 2
QUICK_MEMORY_REQUESTS = 2_000
# Telemetry's share is small: it takes more rounds to tell it from noise.
TELEMETRY_ROUNDS_FACTOR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 1 when an answer was wrong or a share is slower than before, 0 else.

    A goal that is missed is a result.
    """
    options = parse(argv)
    notes = Console(stderr=True, highlight=False)
    report = Report(options.rounds, earlier=options.against)
    with tempfile.TemporaryDirectory(prefix="mlx-manager-benchmarks-") as folder:
        for part in options.parts:
            _measure(part, options, Path(folder) / part, report, notes.print)
    print_report(report, Console(width=WIDTH))
    if options.json:
        report.write(options.json)
    is_slower = any(change.is_slower for change in report.changes)
    return 1 if report.failures or is_slower else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what a command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"what to measure: {', '.join(PARTS)} (default: {', '.join(DEFAULT_PARTS)}; "
        f"with --quick: {', '.join(QUICK_PARTS)})",
    )
    parser.add_argument("--only", type=_words, metavar="PART[,PART]", help="the same as an option")
    parser.add_argument(
        "--clients", type=_numbers, help="numbers of clients, as 1,4,16,32,64", metavar="N[,N]"
    )
    parser.add_argument("--rounds", type=int, help=f"rounds of each measurement ({ROUNDS})")
    parser.add_argument("--requests", type=int, help=f"requests of the memory part ({REQUESTS})")
    parser.add_argument("--without-mlx-lm", action="store_true", help="leave mlx_lm.server out")
    parser.add_argument("--quick", action="store_true", help="a rough look in under two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument(
        "--against",
        type=_earlier,
        help="compare with what --json has written earlier",
        metavar="FILE",
    )
    options = parser.parse_args(argv)
    default = QUICK_PARTS if options.quick else DEFAULT_PARTS
    options.parts = options.only or options.parts or list(default)
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    options.requests = options.requests or (QUICK_MEMORY_REQUESTS if options.quick else REQUESTS)
    return options


def _measure(
    part: str, options: argparse.Namespace, folder: Path, report: Report, say: Say
) -> None:
    has_mlx_lm = not options.without_mlx_lm
    if part == "telemetry":
        _measure_telemetry(options, folder, report, say)
    elif part == "memory":
        _measure_memory(options, folder, report, say)
    elif part == "prefix":
        for model in MODEL_NAMES[:1] if options.quick else MODEL_NAMES:
            report.followups += measure_followups(
                model,
                options.rounds,
                folder / model,
                say,
                has_mlx_lm=has_mlx_lm,
                is_quick=options.quick,
            )
    elif part == "contended":
        report.contended += measure_contended(
            options.rounds, folder, say, has_mlx_lm=has_mlx_lm, is_quick=options.quick
        )
    elif part == "contended-32k":
        report.contended += measure_longest(options.rounds, folder, say)
    else:
        work: WorkName = "mixed" if part == "mixed" else "even"
        _compare("small" if part == "small" else "tiny", work, options, folder, report, say)


def _compare(
    model: ModelName,
    work: WorkName,
    options: argparse.Namespace,
    folder: Path,
    report: Report,
    say: Say,
) -> None:
    counts = QUICK_CLIENT_COUNTS if options.quick else CLIENT_COUNTS
    comparison = compare(
        model,
        work,
        options.clients or counts[work],
        options.rounds,
        folder,
        say,
        has_mlx_lm=not options.without_mlx_lm,
        is_quick=options.quick,
    )
    report.comparisons += comparison_figures(comparison)
    report.failures += [
        f"{model}, {work}, {clients} clients, {series.name}: {failure}"
        for clients, by_name in comparison.series.items()
        for series in by_name.values()
        for failure in series.failures
    ]


def _measure_telemetry(options: argparse.Namespace, folder: Path, report: Report, say: Say) -> None:
    rounds = options.rounds * TELEMETRY_ROUNDS_FACTOR
    for model in MODEL_NAMES:
        cost = measure_telemetry(model, rounds, folder / model, say, is_quick=options.quick)
        report.telemetry.append(telemetry_figures(cost))
        report.failures += cost.failures


def _measure_memory(options: argparse.Namespace, folder: Path, report: Report, say: Say) -> None:
    growths, failures = measure_memory(folder, say, requests=options.requests)
    report.memory = list(map(memory_figures, growths))
    report.failures += failures


def _earlier(file: str) -> Earlier:
    try:
        return Earlier.read(Path(file))
    except NotAReport as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
