"""The capability card that a run of the checks makes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from mlx_manager.capability_card import Card
from mlx_manager.conformance.check import Finding


def card_of(
    model: str, revision: str, version: str, at: datetime, findings: Iterable[Finding]
) -> Card:
    """Return the card that these findings make."""
    found = list(findings)
    return Card(
        model,
        revision,
        version,
        at.isoformat(timespec="seconds"),
        {one.name: one.result for one in found if one.is_capability},
        sum(one.result == "pass" for one in found),
        sum(one.result == "fail" for one in found),
    )
