"""What mlx-lm's caches hold of one row, and caches made from that again.

Attention's keys and values can be cut behind any token. A sliding window, a convolution or a recurrent state belongs to
one place in the row and to no other: it comes and goes whole, as a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from mlx_manager.mlx_server.engine.quantised_kv import Quantisation, QuantisedCache
from mlx_manager.mlx_server.engine.single_row import is_batchable

# Of one attention layer: keys and values, `[1, heads, tokens, width]`, whole or as words.
Layer = tuple[mx.array, mx.array]
Layers = list[Layer]
PLAIN = (KVCache, QuantisedCache)
WITH_SNAPSHOTS = (RotatingKVCache, ChunkedKVCache, ArraysCache)
# Of one layer that can't be cut: a window's last keys and values, or what a recurrent layer keeps; None where a layer
# keeps nothing.
State = tuple[mx.array | None, ...]
States = list[State]


@dataclass(frozen=True, slots=True)
class RowState:
    """Everything that `tokens` tokens of a row have left in the caches."""

    tokens: int
    layers: Layers
    states: States


@dataclass(frozen=True, slots=True)
class CacheKinds:
    """What a model's caches are.

    Whether all of them can be brought back, whether any needs snapshots, and whether rows can share all of them.
    """

    is_supported: bool
    needs_states: bool
    are_batchable: bool


def kinds_of(model: Any) -> CacheKinds:
    """Look at a model's empty caches."""
    caches: list[Any] = make_prompt_cache(model)
    kinds = [type(cache) for cache in _leaves(caches)]
    # Not by `isinstance`: a model's own subclass may keep more than what is taken here.
    is_supported = all(kind in (*PLAIN, *WITH_SNAPSHOTS) for kind in kinds)
    needs_states = any(kind not in PLAIN for kind in kinds)
    return CacheKinds(is_supported, needs_states, all(map(is_batchable, caches)))


@dataclass(frozen=True, slots=True)
class PlainLayers:
    """So many layers, each of which keeps keys and values and nothing else: whole, or quantised."""

    count: int
    quantisation: Quantisation | None = None


def plain_layers(model: Any) -> PlainLayers | None:
    """Return a model's layers, if all of them are plain; None if not."""
    caches = make_prompt_cache(model)
    if not all(is_plain(cache) for cache in caches):
        return None
    return PlainLayers(len(caches), getattr(caches[0], "quantisation", None) if caches else None)


def is_plain(cache: Any) -> bool:
    """Whether a cache keeps keys and values and nothing else. A model's own subclass may keep more."""
    return type(cache) in PLAIN


def state_of(caches: Sequence[Any], tokens: int) -> RowState:
    """Return what a row's caches hold after `tokens` tokens; the arrays may still be the row's own."""
    layers, states = Layers(), States()
    for cache in _leaves(caches):
        if is_plain(cache):
            keys, values = cache.keys, cache.values
            assert keys is not None
            assert values is not None
            layers.append((keys, values))
        elif type(cache) is RotatingKVCache:
            states.append(_window(cache))
        elif type(cache) is ChunkedKVCache:
            states.append(_chunk(cache))
        else:
            states.append(tuple(cache.cache))
    return RowState(tokens, layers, states)


def caches_for(model: Any, row: RowState) -> list[Any]:
    """Return mlx-lm's caches as they are behind the tokens of `row`; empty ones for a row without tokens."""
    caches: list[Any] = make_prompt_cache(model)
    if row.tokens == 0:
        return caches
    layers, states = iter(row.layers), iter(row.states)
    for cache in _leaves(caches):
        if is_plain(cache):
            cache.keys, cache.values = next(layers)
            cache.offset = row.tokens
        elif type(cache) is RotatingKVCache:
            cache.keys, cache.values = next(states)
            cache.offset, cache._idx = row.tokens, min(row.tokens, cache.max_size)
        elif type(cache) is ChunkedKVCache:
            keys, cache.values = next(states)
            assert keys is not None
            cache.keys, cache.offset = keys, row.tokens
            cache.start_position = row.tokens - keys.shape[2]
        else:
            cache.cache = list(next(states))
    return caches


def _window(cache: RotatingKVCache) -> State:
    """Return a window's keys and values, the oldest first. Behind a prompt there are more, never looked at again."""
    tokens = cache.size()
    both = (cache.keys, cache.values)
    return tuple(cache._temporal_order(one)[..., -tokens:, :] for one in both)


def _chunk(cache: ChunkedKVCache) -> State:
    """Return the keys and values that the next token may look at, and some before: what its model cuts off next."""
    tokens = cache.offset - cache.start_position
    first = max(tokens - cache.chunk_size, 0)
    both: tuple[Any, Any] = (cache.keys, cache.values)
    return tuple(one[..., first:tokens, :] for one in both)


def _leaves(caches: Sequence[Any]) -> Iterator[Any]:
    """Yield the caches of all layers; some layers have several."""
    for cache in caches:
        if type(cache) is CacheList:
            yield from _leaves(cache.caches)
        else:
            yield cache
