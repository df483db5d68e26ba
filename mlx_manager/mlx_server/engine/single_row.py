"""Caches that mlx-lm can't batch, in batches of one row: their models read and answer one request after the other.

What mlx-lm asks of a batch's cache is little when nobody ever joins the row: it's taken in, and taken out again.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import copy, deepcopy
from functools import cache
from typing import Any


class SingleRow:
    """What is added to a cache of one row, of the kind `own_kind`, to make it the cache of a batch, too."""

    own_kind: Any

    def merge(self, caches: Sequence[Any]) -> Any:
        """Become the batch of this row. Raises ValueError where there is another."""
        if len(caches) != 1:
            raise ValueError(
                f"{len(caches)} rows in a batch of a model whose caches can't be batched"
            )
        return self

    def extend(self, other: Any) -> None:
        """Take another row in: there is none."""
        raise ValueError(f"{type(other).__name__} joins a row whose cache can't be batched")

    def filter(self, keep: Sequence[int]) -> None:
        """Keep this row; where it goes its batch drops the cache."""
        assert list(keep) == [0]

    def extract(self, index: int) -> Any:
        """Return the row's own cache: a copy, as this one is written to in place."""
        assert index == 0
        own = deepcopy(self)
        own.__class__ = self.own_kind
        return own


def is_batchable(cache: Any) -> bool:
    """Whether mlx-lm can have several rows in one cache of this kind."""
    return hasattr(cache, "merge")


def as_batch(caches: Sequence[Any]) -> list[Any]:
    """Return a row's caches as mlx-lm's batch takes them; where one can't be batched, each is for this row alone.

    Such a model counts on all of them to know of one row only.
    """
    if all(map(is_batchable, caches)):
        return list(caches)
    return [_alone(one) for one in caches]


def _alone(own: Any) -> Any:
    single = copy(own)
    kind: Any = type(own)
    single.__class__ = _single_row(kind)
    return single


@cache
def _single_row(kind: Hashable) -> Any:
    """Return a kind of caches with what batches ask for."""
    own: Any = kind
    return type(f"SingleRow{own.__name__}", (SingleRow, own), {"own_kind": own})
