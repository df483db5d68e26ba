"""What the bare loop keeps beside a process that takes a tenth of a core: `python -m benchmarks.company MODEL`.

A server's API process takes about that while it streams, in pieces 16 ms apart. What the loop loses beside it, no
server on the same cores can have, whatever it does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.child import Child
from benchmarks.contenders import BareContender, Contender, Measured
from benchmarks.models import make_model
from benchmarks.prompts import PromptMaker
from benchmarks.rounds import measure, throughput_ratio
from benchmarks.work import MODEL_NAMES, Load, load_for

PIECE_S, BUSY_S = 0.016, 0.0016
COMPANY = f"""
import time
while True:
    time.sleep({PIECE_S - BUSY_S})
    end_s = time.perf_counter() + {BUSY_S}
    while time.perf_counter() < end_s:
        pass
"""
ALONE = "the bare loop"


class InCompany:
    """A contender beside a process that works now and then, for nobody."""

    def __init__(self, name: str, inner: BareContender) -> None:
        self.name = name
        self._inner = inner

    def run(self, load: Load, seed: int) -> Measured:
        """See `Contender`."""
        with subprocess.Popen([sys.executable, "-c", COMPANY]) as company:
            try:
                return self._inner.run(load, seed)
            finally:
                company.kill()


def main() -> int:
    """Measure in turns, and print shares of the bare loop's throughput: of the loop itself, too, which is the noise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.company", description=__doc__)
    parser.add_argument("model", choices=MODEL_NAMES)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlx-manager-company-") as folder:
        path = make_model(Path(folder), options.model)
        prompts, child = PromptMaker(path), Child("benchmarks.bare", [str(path)])
        alone = BareContender(ALONE, child, prompts)
        spread = BareContender("spread", child, prompts, spread=True)
        contenders: list[Contender] = [
            alone,
            BareContender("the same once more", child, prompts),
            InCompany("in company", alone),
            InCompany("spread, in company", spread),
        ]
        load = load_for(options.model, options.clients)
        with child:
            series = measure(contenders, load, options.rounds, lambda text: print(text))
    table = Table("Contender", "of the bare loop", "range")
    for one in series.values():
        ratios = one.compared(series[ALONE], throughput_ratio)
        table.add_row(one.name, f"{median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
