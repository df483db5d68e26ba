"""A model's capability card: what the last run of the checks found, kept in a file by model and revision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

# `n/a` is what says nothing of this model.
CardResult = Literal["pass", "fail", "yes", "no", "n/a"]
FILE_NAME = "capabilities.json"


@dataclass(frozen=True, slots=True)
class Card:
    """What a model can do by the name of the capability, and how many of the server's checks passed and failed.

    `revision` tells the model's files from earlier ones of the same id; `checked_at` is RFC 3339.
    """

    model: str
    revision: str
    version: str
    checked_at: str
    capabilities: Mapping[str, CardResult]
    passed: int
    failed: int

    @property
    def can(self) -> tuple[str, ...]:
        """The capabilities that were found."""
        return tuple(name for name, result in self.capabilities.items() if result == "yes")

    @property
    def checked_on(self) -> str:
        """The day of the check."""
        return self.checked_at[:10]


def path_beside(database: Path) -> Path:
    """Where cards are kept: in the folder of the databases."""
    return database.with_name(FILE_NAME)


def read_cards(path: Path) -> dict[tuple[str, str], Card]:
    """Return the cards by model and revision; none where the file is missing or is not one of ours."""
    try:
        cards = [Card(**card) for card in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return {}
    return {(card.model, card.revision): card for card in cards}


def keep_card(path: Path, card: Card) -> None:
    """Write a card beside the others; it replaces that of the same model, whatever its revision."""
    others = [one for one in read_cards(path).values() if one.model != card.model]
    path.parent.mkdir(parents=True, exist_ok=True)
    # A reader finds the old file or the new one, never half of it.
    half = path.with_suffix(".new")
    half.write_text(json.dumps([asdict(one) for one in (*others, card)], indent=1) + "\n")
    half.replace(path)
