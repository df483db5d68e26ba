"""Compare what an engine process works on with the requests that wait for it, once a second.

The two must be the same. A row that nobody waits for is computed for nothing; a request without a row waits for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from mlx_manager.mlx_server.engine.messages import Vitals

logger = logging.getLogger(__name__)

# The channel keeps the order, so already the first look is exact; what is repaired by itself need not be reported.
LOOKS_UNTIL_REPORTED = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """Ids that only one side knows: rows nobody waits for, requests without a row, rows outside the engine's books."""

    orphaned: frozenset[int] = frozenset()
    missing: frozenset[int] = frozenset()
    unbooked: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.orphaned) + len(self.missing) + len(self.unbooked)

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {
            "orphaned": len(self.orphaned),
            "missing": len(self.missing),
            "unbooked": len(self.unbooked),
        }


def difference(known: Collection[int], vitals: Vitals) -> Difference:
    """Return how the ids of running requests differ from what their engine said of itself.

    A request that is newer than what the engine had taken in by then is still on its way and can't be missing.
    """
    in_engine = frozenset(vitals.sequence_ids)
    arrived = frozenset(one for one in known if one <= vitals.newest_id)
    return Difference(
        orphaned=in_engine - frozenset(known),
        missing=arrived - in_engine,
        unbooked=frozenset(vitals.row_ids) - in_engine,
    )


class RowCheck:
    """Looks at each report of one engine; `difference` is what the last look found."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self.difference = Difference()
        self._looks = 0

    def look(self, known: Collection[int], vitals: Vitals) -> Difference:
        """Compare, and say so in the log when something stays different. Returns what has stayed so."""
        found = difference(known, vitals)
        same = _common(self.difference, found)
        self._looks = self._looks + 1 if same else (1 if found else 0)
        self.difference = found
        if self._looks < LOOKS_UNTIL_REPORTED:
            return Difference()
        if self._looks == LOOKS_UNTIL_REPORTED:
            logger.error(
                "engine rows differ %(model)s orphaned=%(orphaned)d missing=%(missing)d unbooked=%(unbooked)d",
                {"model": self._model_id, **found.counts},
            )
        return same


def _common(one: Difference, other: Difference) -> Difference:
    return Difference(
        one.orphaned & other.orphaned,
        one.missing & other.missing,
        one.unbooked & other.unbooked,
    )
