"""`make chaos`: faults against a running server, and `make chaos ARGS="soak 100000"`: that many short requests."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tools.chaos.run import run
from tools.chaos.soak import report, soak


def main() -> int:
    """Return 0 when nothing was lost that must not be."""
    arguments = _parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "soak":
            return _soak(Path(folder), arguments.requests)
        return _faults(Path(folder))


def _faults(folder: Path) -> int:
    tallies = asyncio.run(run(folder, _say))
    wrong = sum(bool(tally.wrong) for tally in tallies)
    _say(f"{len(tallies)} faults, {wrong} with losses that must not be")
    return min(wrong, 1)


def _soak(folder: Path, requests: int) -> int:
    soaked = asyncio.run(soak(folder, requests, _say))
    _say(report(soaked))
    return min(len(soaked.wrong), 1)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["faults", "soak"], default="faults")
    parser.add_argument("requests", nargs="?", type=int, default=5000)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
