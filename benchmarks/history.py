"""What an earlier run had for the same work: has this version become slower?

Shares of the bare loop are compared, not tokens a second: the machine is in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figures, Spread


class NotAReport(ValueError):
    """The file isn't one that `--json` has written."""


@dataclass(frozen=True, slots=True)
class Change:
    """A contender's share of the bare loop, then and now."""

    place: str
    before: Spread
    now: Spread

    @property
    def is_slower(self) -> bool:
        """Whether every round of now was slower than every round of then: all else may be noise."""
        return self.now.high < self.before.low


@dataclass(frozen=True, slots=True)
class Earlier:
    """The shares of an earlier run, by what was measured."""

    started_at: str
    shares: dict[str, Spread]

    @classmethod
    def read(cls, file: Path) -> Earlier:
        """Return what `--json` has written into a file. Raises NotAReport."""
        try:
            report = json.loads(file.read_text())
            shares = {
                _place(row["model"], row["work"], row["clients"], row["contender"]): Spread(
                    **row["ratio"]
                )
                for row in report["comparisons"]
            }
            return cls(report["started_at"], shares)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise NotAReport(f"{file} is no report that --json has written: {error}") from error

    def changes(self, rows: Iterable[Figures]) -> list[Change]:
        """Return those of what both have measured."""
        now = {_place(row.model, row.work, row.clients, row.contender): row.ratio for row in rows}
        return [
            Change(place, self.shares[place], share)
            for place, share in now.items()
            if place in self.shares
        ]


def _place(model: str, work: str, clients: int, contender: str) -> str:
    return f"{model}, {work}, {clients} clients, {contender}"
