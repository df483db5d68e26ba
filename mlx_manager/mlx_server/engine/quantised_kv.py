"""Keys and values of 8 or 4 bits a number: mlx-lm's caches of one row and of prompts that are read together.

Of each token they keep *words* of 32 bits: the quantised numbers of a head, and behind them the scales and biases of
its groups. So what is cut, joined, moved and written to files by tokens goes on as if it were one array of whole
numbers. What a prompt attends to is whole again while a layer computes; rows that decode attend to it as it is
(`slotted_cache`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache

WORD_BITS = 32
# Of a quantised array: its numbers, and of each group the scale and the bias.
Parts = tuple[mx.array, mx.array, mx.array]


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How numbers of type `dtype` are kept: `bits` each, and a scale and a bias for `group_size` of them."""

    bits: int
    group_size: int
    dtype: mx.Dtype

    def __deepcopy__(self, memo: dict[int, Any]) -> Quantisation:
        """Caches are copied with all that they have; MLX's types of numbers can't be."""
        return self

    def quantise(self, numbers: mx.array) -> Parts:
        """Return the parts of an array whose last axis is a multiple of the group's size."""
        quantised, scales, biases = mx.quantize(numbers, group_size=self.group_size, bits=self.bits)
        return quantised, scales, biases

    def words(self, parts: Parts) -> mx.array:
        """Return parts as one array of words."""
        quantised, scales, biases = parts
        beside = mx.concatenate([scales, biases], axis=-1).view(mx.uint32)
        return mx.concatenate([quantised, beside], axis=-1)

    def parts(self, words: mx.array) -> Parts:
        """Return what `words` are of."""
        own_words = self.group_size * self.bits // WORD_BITS
        beside_words = 2 * self.dtype.size * 8 // WORD_BITS
        groups = words.shape[-1] // (own_words + beside_words)
        beside = words[..., groups * own_words :].view(self.dtype)
        return words[..., : groups * own_words], beside[..., :groups], beside[..., groups:]

    def pack(self, numbers: mx.array) -> mx.array:
        """Return the words of an array."""
        return self.words(self.quantise(numbers))

    def unpack(self, words: mx.array) -> mx.array:
        """Return the numbers, as near as they were kept."""
        quantised, scales, biases = self.parts(words)
        numbers: mx.array = mx.dequantize(
            quantised, scales, biases, group_size=self.group_size, bits=self.bits
        )
        return numbers


class Words:
    """What a cache of mlx-lm's becomes that keeps words, and gives out what they are of."""

    quantisation: Quantisation

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keep the next tokens', and return those of all tokens, whole."""
        pack, untyped = self.quantisation.pack, cast("Any", super())
        both: tuple[mx.array, mx.array] = untyped.update_and_fetch(pack(keys), pack(values))
        return both

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """Return those of all tokens, whole."""
        keys, values = cast("Any", super()).keys_and_values()
        return self.quantisation.unpack(keys), self.quantisation.unpack(values)


class QuantisedCache(Words, KVCache):
    """The keys and values of one row in one layer, as words."""

    def __init__(self, quantisation: Quantisation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.quantisation = quantisation

    def merge(self, caches: Sequence[QuantisedCache]) -> QuantisedBatchCache:  # type: ignore[override]
        """Return one cache for several rows, of which this is the first."""
        batch = QuantisedBatchCache(self.quantisation)
        batch.state = BatchKVCache.merge(caches).state
        return batch


class QuantisedBatchCache(Words, BatchKVCache):
    """The keys and values in one layer of several rows that read their prompts, as words."""

    def __init__(self, quantisation: Quantisation) -> None:
        super().__init__([])
        self.quantisation = quantisation

    def extract(self, idx: int) -> QuantisedCache:
        """Return a row's own cache."""
        row = QuantisedCache(self.quantisation)
        row.state = cast("Any", super()).extract(idx).state
        return row
