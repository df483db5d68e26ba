"""What is stored of prompts, found again by their beginnings, and dropped when it is too much."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from mlx_manager.mlx_server.engine.prefix_block import Block
from mlx_manager.mlx_server.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from mlx_manager.mlx_server.engine.row_state import Layers, RowState

LOTS = 1 << 30
TOKEN_BYTES = 2 * 2 * 3 * 4 * 2  # layers, heads, width, float32, keys and values


def layers_for(tokens: list[int]) -> Layers:
    """Two layers whose numbers tell layer, kind, head, width and all tokens up to theirs, as attention's do."""
    sums = np.cumsum([token + 1 for token in tokens])

    def made(layer: int, kind: int) -> mx.array:
        scale = np.array(
            [[[1 + layer * 7 + kind * 3 + head + 0.1 * at for at in range(3)]] for head in range(2)]
        )
        return mx.array((sums[None, :, None] * scale).astype(np.float32)[None])  # fmt: skip

    return [(made(layer, 0), made(layer, 1)) for layer in range(2)]


def row(tokens: list[int]) -> RowState:
    return RowState(len(tokens), layers_for(tokens), [])


def stored(*prompts: list[int], budget: int = LOTS) -> PrefixCache:
    cache = PrefixCache(budget)
    for prompt in prompts:
        cache.store(prompt, row(prompt))
    return cache


def prompt(seed: int, length: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(1000) for _ in range(length)]


def check(cache: PrefixCache, asked: list[int], expected: int) -> None:
    """See that so many tokens are found, and that what comes back is what they had."""
    match = cache.match(asked)
    assert match.tokens == expected
    assert (match.reason is None) == (expected == len(asked) - 1)
    wanted = layers_for(asked[:expected]) if expected else []
    for (keys, values), (wanted_keys, wanted_values) in zip(match.row.layers, wanted, strict=True):
        assert mx.array_equal(keys, wanted_keys)
        assert mx.array_equal(values, wanted_values)


@pytest.mark.parametrize("shared", [1, 2, 255, 256, 257, 511, 512, 513, 700])
@pytest.mark.parametrize("rest", [1, 300])
def test_the_longest_shared_beginning_is_found_at_every_length(shared: int, rest: int) -> None:
    old = prompt(1, 700)
    cache = stored(prompt(2, 400), old, prompt(3, 90))
    check(cache, old[:shared] + [2000 + at for at in range(rest)], shared)


def test_an_exact_repeat_computes_its_last_token_only() -> None:
    for length in (2, 255, 256, 257, 600):
        old = prompt(1, length)
        check(stored(old), old, length - 1)


def test_nothing_is_found_where_nothing_is_shared() -> None:
    assert PrefixCache(LOTS).match([1, 2, 3]).reason == "nothing_stored"
    match = stored([5, 6, 7]).match([1, 2, 3])
    assert (match.tokens, match.row.layers, match.reason) == (0, [], "diverged")
    assert stored([5, 6]).match([5]).tokens == 0


def test_a_repeat_that_is_too_short_to_be_given_out_is_told_of() -> None:
    cache = stored([5, 6, 7])
    for tokens, shared in (([5, 6, 7], 2), ([5], 0)):
        match = cache.match(tokens, least_tokens=16)
        assert (match.tokens, match.shared_tokens, match.reason) == (0, shared, "too_short")


def test_shared_beginnings_are_stored_once_and_each_way_on_is_kept() -> None:
    head, ways = prompt(1, 512), [prompt(seed, 100) for seed in range(2, 6)]
    cache = stored(*(head + way for way in ways))
    assert cache.nbytes == (512 + 4 * 100) * TOKEN_BYTES
    for way in ways:
        check(cache, [*head, *way, 3000], 612)


def test_a_prompt_that_goes_on_takes_the_place_of_its_beginning() -> None:
    turns = prompt(1, 500)
    cache = stored(*(turns[:length] for length in (10, 100, 255, 256, 300, 500)))
    assert cache.nbytes == 500 * TOKEN_BYTES
    check(cache, [*turns, 1], 500)
    cache.store(turns[:40], row(turns[:40]))
    assert cache.nbytes == 500 * TOKEN_BYTES


def test_what_was_used_longest_ago_goes_first_and_never_before_what_goes_on_from_it() -> None:
    first, second, third = (prompt(seed, 2 * BLOCK_TOKENS) for seed in (1, 2, 3))
    cache = stored(first, second, budget=4 * BLOCK_TOKENS * TOKEN_BYTES)
    cache.match(first)
    cache.store(third, row(third))
    assert cache.nbytes <= 4 * BLOCK_TOKENS * TOKEN_BYTES
    check(cache, [*first, 1], 2 * BLOCK_TOKENS)
    check(cache, [*third, 1], 2 * BLOCK_TOKENS)
    assert cache.match([*second, 1]).tokens == 0


def test_what_is_larger_than_the_budget_is_kept_as_far_as_it_goes() -> None:
    old = prompt(1, 1000)
    cache = stored(old, budget=300 * TOKEN_BYTES)
    check(cache, old, BLOCK_TOKENS)


def test_a_match_holds_on_to_what_is_dropped_meanwhile() -> None:
    old = prompt(1, 300)
    cache = stored(old)
    match = cache.match([*old, 1])
    cache.clear()
    assert cache.nbytes == 0
    assert mx.array_equal(match.row.layers[1][1], layers_for(old)[1][1])


@pytest.fixture
def without_collections() -> Iterator[None]:
    """Nothing frees what holds itself: a collection that looks at old objects may not come for hours."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def blocks() -> int:
    return sum(isinstance(one, Block) for one in gc.get_objects())


@pytest.mark.usefixtures("without_collections")
def test_what_is_dropped_is_freed_at_once() -> None:
    bytes_before, blocks_before = mx.get_active_memory(), blocks()
    budget = 1500 * TOKEN_BYTES
    cache, asked = PrefixCache(budget), prompt(1, 1000)
    for length in range(100, 1000, 40):
        cache.store(asked[:length], row(asked[:length]))
    # Three whole blocks and the last one, which took the place of shorter ones.
    assert blocks() - blocks_before == 1 + 4
    assert mx.get_active_memory() - bytes_before <= 2 * cache.nbytes

    for seed in range(2, 40):
        asked = prompt(seed, 300)
        cache.store(asked, row(asked))
    assert blocks() - blocks_before <= 1 + 2 * 1500 // 300
    assert mx.get_active_memory() - bytes_before <= 2 * budget

    cache.clear()
    assert (cache.nbytes, blocks() - blocks_before) == (0, 1)
    assert mx.get_active_memory() == bytes_before


def test_many_random_prompts_are_found_as_a_plain_search_finds_them() -> None:
    chosen = random.Random(5)
    kept = list[list[int]]()
    cache = PrefixCache(LOTS)
    for _ in range(150):
        base = (
            chosen.choice(kept)[: chosen.randrange(600)] if kept and chosen.random() < 0.8 else []
        )
        asked = base + [chosen.randrange(4) for _ in range(chosen.randrange(1, 300))]
        expected = max((shared(asked[:-1], other) for other in kept), default=0)
        check(cache, asked, expected)
        cache.store(asked, row(asked))
        kept.append(asked)


def shared(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
