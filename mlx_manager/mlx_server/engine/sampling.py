"""Choose tokens from logits. One object per set of parameters: mlx-lm samples a batch in one call only when every
row holds the same object.

Filters come in the order that vLLM and transformers use: temperature, top_k, top_p, min_p.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import mlx.core as mx

from mlx_manager.mlx_server.engine.messages import SamplingParameters

# Below this, dividing by the temperature overflows before it changes what is drawn.
GREEDY_BELOW = 1e-5
Sampler = Callable[[mx.array], mx.array]


def greedy(logprobs: mx.array) -> mx.array:
    """Return the most likely token of each row, `[rows, vocabulary]` -> `[rows]`."""
    return mx.argmax(logprobs, axis=-1)


def sampler_for(parameters: SamplingParameters) -> Sampler:
    """Return the sampler of a row; rows with equal parameters share it unless they are seeded."""
    if parameters.temperature < GREEDY_BELOW:
        return greedy
    if parameters.seed is not None:
        return SeededSampler(parameters, parameters.seed)
    return _shared_sampler(parameters)


@lru_cache(maxsize=256)
def _shared_sampler(parameters: SamplingParameters) -> Sampler:
    def sample(logprobs: mx.array) -> mx.array:
        return mx.random.categorical(filtered(logprobs, parameters))

    return sample


class SeededSampler:
    """Draws with a key made from the seed and the position in the answer, and from nothing else.

    So a row gets the same tokens for the same logits whoever shares the batch. It belongs to one sequence and is
    called once for each of its tokens.
    """

    def __init__(self, parameters: SamplingParameters, seed: int) -> None:
        self._parameters = parameters
        self._key = mx.random.key(seed % 2**64)

    def __call__(self, logprobs: mx.array) -> mx.array:
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(filtered(logprobs, self._parameters), key=key)


def filtered(logprobs: mx.array, parameters: SamplingParameters) -> mx.array:
    """Return logits to draw from, `[rows, vocabulary]`: scaled by temperature, excluded tokens at -inf."""
    scaled = logprobs * (1 / parameters.temperature)
    vocabulary = scaled.shape[-1]
    if 0 < parameters.top_k < vocabulary:
        scaled = _keep_top_k(scaled, parameters.top_k)
    if parameters.top_p < 1:
        scaled = _keep_top_p(scaled, parameters.top_p)
    if parameters.min_p > 0:
        scaled = _keep_min_p(scaled, parameters.min_p)
    return scaled


def _keep_top_k(logits: mx.array, top_k: int) -> mx.array:
    """Keep the `top_k` most likely tokens, and those exactly as likely as the last of them."""
    smallest_kept = mx.topk(logits, top_k, axis=-1).min(axis=-1, keepdims=True)
    return mx.where(logits >= smallest_kept, logits, -mx.inf)


def _keep_top_p(logits: mx.array, top_p: float) -> mx.array:
    """Keep the fewest most likely tokens whose probabilities sum to at least `top_p`; never fewer than one."""
    order = mx.argsort(-logits, axis=-1)
    probabilities = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1)
    before = mx.cumsum(probabilities, axis=-1, inclusive=False)
    is_kept = mx.put_along_axis(
        mx.zeros(logits.shape, mx.bool_), order, before < max(top_p, 1e-9), axis=-1
    )
    return mx.where(is_kept, logits, -mx.inf)


def _keep_min_p(logits: mx.array, min_p: float) -> mx.array:
    """Keep tokens at least `min_p` times as likely as the most likely one."""
    smallest_kept = logits.max(axis=-1, keepdims=True) + math.log(min_p)
    return mx.where(logits >= smallest_kept, logits, -mx.inf)
