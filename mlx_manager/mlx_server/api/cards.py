"""What models were found to be able to do by `mlx-manager doctor conformance`, as the lists of models say it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from mlx_manager.capability_card import Card, CardResult, path_beside, read_cards
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.state import ServerState


class CapabilityCard(BaseModel):
    """What a model can do, by the names of capabilities, and how many of the server's checks passed and failed with it.

    `checked_at` is RFC 3339, `version` that of the server's own program.
    """

    checked_at: str
    version: str
    capabilities: dict[str, CardResult]
    passed: int
    failed: int


@dataclass(frozen=True, slots=True)
class Cards:
    """The cards that were kept, by model and edition."""

    kept: Mapping[tuple[str, str], Card]

    def of(self, model: ModelFiles) -> CapabilityCard | None:
        """Return the card of a model; None until its files, as they are now, have been checked."""
        card = self.kept.get((model.id, model.edition))
        if card is None:
            return None
        return CapabilityCard(
            checked_at=card.checked_at,
            version=card.version,
            capabilities=dict(card.capabilities),
            passed=card.passed,
            failed=card.failed,
        )


async def cards_of(state: ServerState) -> Cards:
    """Read the cards that are kept on this machine."""
    return Cards(await asyncio.to_thread(read_cards, path_beside(state.settings.traces_path)))
