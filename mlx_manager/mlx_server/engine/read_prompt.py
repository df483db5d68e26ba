"""What one sequence has read of a prompt, for others that go on from the same one."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """All tokens of a prompt but the last, in mlx-lm's own caches of one row, of whatever kinds they are."""

    tokens: int
    _caches: list[Any]

    @classmethod
    def of(cls, tokens: int, caches: list[Any]) -> ReadPrompt:
        """Keep `caches`, which nobody else writes to. Computes what they are still waiting for."""
        mx.eval([cache.state for cache in caches])
        return cls(tokens, caches)

    def caches(self) -> list[Any]:
        """Return caches for a row that goes on: it writes into them."""
        return deepcopy(self._caches)
