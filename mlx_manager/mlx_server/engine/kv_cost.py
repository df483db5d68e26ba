"""How many bytes a model keeps of a sequence: keys and values of its tokens, and states."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from mlx_manager.mlx_server.engine.messages import KvCost
from mlx_manager.mlx_server.engine.row_state import is_plain

# Any token will do: it is the shape of what a layer keeps of it that counts.
PROBE_TOKEN_ID = 0
# What of the memory all arrays together should take: the rest is for the system and for what is computed with.
USABLE_SHARE = 0.75
# However large the weights are, so much is left to sequences: to refuse everything would help nobody.
LEAST_SHARE = 0.05
# A layer whose keys and values aren't kept beyond a window keeps so many tokens of it at most; None: all.
Layer = tuple[int, int | None]


def measure_kv_cost(model: Any) -> KvCost | None:
    """Run one token through `model` and look at what its layers keep; None when some layer can't be told.

    A window is counted with all of its tokens once a sequence is as long as that.
    """
    caches = make_prompt_cache(model)
    logits = model(mx.array([[PROBE_TOKEN_ID]]), cache=caches)
    mx.eval(logits, [cache.state for cache in caches])
    states, layers = 0, list[Layer]()
    for cache in _flat(caches):
        if is_plain(cache):
            layers.append((_token_bytes(cache), None))
        elif type(cache) is RotatingKVCache:
            layers.append((_token_bytes(cache), cache.max_size))
        elif type(cache) is ChunkedKVCache:
            layers.append((_token_bytes(cache), cache.chunk_size))
        elif type(cache) is ArraysCache:
            states += cache.nbytes
        else:
            return None
    windows = sorted({window for _, window in layers if window is not None})
    return KvCost(
        token_bytes=_sum(layers, None),
        windows=tuple((_sum(layers, window), window) for window in windows),
        state_bytes=states,
    )


def bytes_beside(taken_bytes: int) -> int:
    """Return how many bytes sequences and stored prompts may keep on this machine beside `taken_bytes` of weights."""
    memory_bytes = _memory_bytes()
    free_bytes = int(USABLE_SHARE * memory_bytes) - taken_bytes
    return max(free_bytes, int(LEAST_SHARE * memory_bytes))


def _memory_bytes() -> int:
    """Return the memory that arrays can be in: what a GPU is recommended to use, or all that the machine has."""
    if mx.default_device() != mx.cpu:
        recommended = mx.device_info().get("max_recommended_working_set_size")
        if isinstance(recommended, int):
            return recommended
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _sum(layers: Iterable[Layer], window: int | None) -> int:
    return sum(token_bytes for token_bytes, of in layers if of == window)


def _flat(caches: Iterable[Any]) -> Iterator[Any]:
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from _flat(cache.caches)
        else:
            yield cache


def _token_bytes(cache: Any) -> int:
    """Return the bytes of a token; some layers keep nothing in a cache that mlx-lm makes for them."""
    if cache.keys is None:
        return 0
    allocated: int = cache.keys.shape[2]
    return int(cache.keys.nbytes + cache.values.nbytes) // allocated
