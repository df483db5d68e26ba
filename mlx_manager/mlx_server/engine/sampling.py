"""Choose tokens from logits. Rows that want the same filters are drawn in one call, each with its own temperature,
limits and seed: `draw_together` knows how. A row that is steered (by a bias or a penalty) or held is drawn by itself.

First bias and penalties, then filters in the order that vLLM and transformers use: temperature, top_k, top_p, min_p;
XTC last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import mlx.core as mx

from mlx_manager.mlx_server.engine.messages import SamplingParameters

# Below this, dividing by the temperature overflows before it changes what is drawn.
GREEDY_BELOW = 1e-5
# Rows times vocabulary from which on sorting takes so long that waiting for the logits, to sort few of them, is faster;
# and of which part of the vocabulary that is, at least so many tokens. Measured: docs/decisions/0051.
MANY_LOGITS = 24_000
PICKED_PART = 32
LEAST_PICKED = 256
# Up to this vocabulary a CPU draws rows of other parameters faster in one call; the numbers of more leave its cache.
SMALL_VOCABULARY = 8_192
WORD = 2**64 - 1
Sampler = Callable[[mx.array], mx.array]
# The same for all rows, or one for each, `[rows, 1]`.
Value = float | mx.array
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]


def greedy(logprobs: mx.array) -> mx.array:
    """Return the most likely token of each row, `[rows, vocabulary]` -> `[rows]`."""
    return mx.argmax(logprobs, axis=-1)


def sampler_for(
    parameters: SamplingParameters,
    prompt_token_ids: Sequence[int] = (),
    end_token_ids: Sequence[int] = (),
    held: Callable[[Sampler], Sampler] | None = None,
    made_token_ids: Sequence[int] = (),
) -> Sampler:
    """Return the sampler of a row; rows that draw alike share it unless they are seeded, steered or held.

    What is `held` to a grammar chooses after bias and penalties, from what the grammar leaves. An answer that goes on
    has its first tokens already, in `made_token_ids`: the next draw is the one that would have followed them.
    """
    draw = _drawing(parameters, end_token_ids, len(made_token_ids))
    if held is not None:
        draw = held(draw)
    if _is_steered(parameters, end_token_ids):
        return SteeredSampler(parameters, prompt_token_ids, end_token_ids, draw, made_token_ids)
    return draw


def _drawing(
    parameters: SamplingParameters, end_token_ids: Sequence[int], drawn_tokens: int
) -> Sampler:
    if parameters.temperature < GREEDY_BELOW:
        return greedy
    kept_token_ids = tuple(end_token_ids) if parameters.xtc_probability > 0 else ()
    # Only what decides a draw: rows that differ in anything else are drawn together all the same.
    drawing = SamplingParameters(
        temperature=parameters.temperature,
        top_p=parameters.top_p,
        top_k=parameters.top_k,
        min_p=parameters.min_p,
        xtc_probability=parameters.xtc_probability,
        xtc_threshold=parameters.xtc_threshold,
    )
    if parameters.seed is not None:
        return SeededSampler(drawing, parameters.seed, kept_token_ids, drawn_tokens)
    return _shared_sampler(drawing, kept_token_ids)


@dataclass(frozen=True, slots=True)
class ChanceSampler:
    """Draws by chance, for all rows with the same parameters in one call."""

    parameters: SamplingParameters
    kept_token_ids: tuple[int, ...]

    def __call__(self, logprobs: mx.array) -> mx.array:
        return _drawn(logprobs, [self.parameters], self.kept_token_ids, None)


@lru_cache(maxsize=256)
def _shared_sampler(parameters: SamplingParameters, kept_token_ids: tuple[int, ...]) -> Sampler:
    return ChanceSampler(parameters, kept_token_ids)


class SeededSampler:
    """Draws with a key made from the seed and the position in the answer, and from nothing else.

    So a row gets the same tokens for the same logits whoever shares the batch. It belongs to one sequence and is
    called once for each of its tokens but the first `drawn_tokens`, which another has drawn.
    """

    def __init__(
        self,
        parameters: SamplingParameters,
        seed: int,
        kept_token_ids: tuple[int, ...] = (),
        drawn_tokens: int = 0,
    ) -> None:
        self.parameters = parameters
        self.kept_token_ids = kept_token_ids
        # Not the seed itself: the next seed's keys must not be those of the next position.
        self._state = mixed(seed)
        self._position = drawn_tokens

    def __call__(self, logprobs: mx.array) -> mx.array:
        keys = mx.array([self.next_key()], mx.uint32)
        return _drawn(logprobs, [self.parameters], self.kept_token_ids, keys)

    def next_key(self) -> tuple[int, int]:
        """Return the key of the next draw, of two words of 32 bits."""
        key = mixed(self._state + self._position)
        self._position += 1
        return key >> 32, key & 0xFFFFFFFF

    def take_back(self, draws: int) -> None:
        """Make the last draws again: they were of proposals that were wrong."""
        self._position -= draws


def is_free(sampler: Sampler) -> bool:
    """Whether a draw needs logits and its position and no token before it: several can be made at once.

    One that is steered by the tokens of its answer, or held to a grammar, needs them.
    """
    return sampler is greedy or isinstance(sampler, (ChanceSampler, SeededSampler))


def draw_together(samplers: Sequence[Sampler], logprobs: mx.array) -> mx.array:
    """Return each row's token, `[rows, vocabulary]` -> `[rows]`: those that draw alike are drawn in one call."""
    alike = dict[object, list[int]]()
    may_differ = mx.default_device() != mx.cpu or logprobs.shape[-1] <= SMALL_VOCABULARY
    for row, sampler in enumerate(samplers):
        alike.setdefault(_draws_like(sampler, may_differ=may_differ), []).append(row)
    if len(alike) == 1:
        return _draw_alike(samplers, logprobs)
    drawn = [
        _draw_alike([samplers[row] for row in rows], logprobs[_places(rows)])
        for rows in alike.values()
    ]
    order = [row for rows in alike.values() for row in rows]
    back = sorted(range(len(order)), key=order.__getitem__)
    return mx.concatenate(drawn)[mx.array(back)]


def _draws_like(sampler: Sampler, *, may_differ: bool) -> object:
    """Return what rows of one call have in common: the filters, and unless they `may_differ` the rest."""
    if not isinstance(sampler, (ChanceSampler, SeededSampler)):
        return sampler
    asked = sampler.parameters
    if not may_differ:
        return type(sampler), sampler.kept_token_ids, asked
    return (
        type(sampler),
        sampler.kept_token_ids,
        # A draw among so many tokens has so many numbers of chance.
        asked.top_k,
        asked.top_p < 1,
        asked.min_p > 0,
        asked.xtc_probability > 0 and (asked.xtc_probability, asked.xtc_threshold),
    )


def _draw_alike(samplers: Sequence[Sampler], logprobs: mx.array) -> mx.array:
    drawing = [one for one in samplers if isinstance(one, (ChanceSampler, SeededSampler))]
    if not drawing:
        return samplers[0](logprobs)
    keys = [one.next_key() for one in drawing if isinstance(one, SeededSampler)]
    parameters = [one.parameters for one in drawing]
    return _drawn(
        logprobs,
        parameters,
        drawing[0].kept_token_ids,
        mx.array(keys, mx.uint32) if keys else None,
    )


def _places(rows: list[int]) -> slice | mx.array:
    return slice(rows[0], rows[0] + 1) if len(rows) == 1 else mx.array(rows)


def mixed(number: int) -> int:
    """Return 64 bits that look like chance, others for each of 2^64 numbers: Vigna's splitmix64."""
    mixture = (number * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & WORD
    mixture = ((mixture ^ (mixture >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    mixture = ((mixture ^ (mixture >> 27)) * 0x94D049BB133111EB) & WORD
    return mixture ^ (mixture >> 31)


def _drawn(
    logprobs: mx.array,
    parameters: Sequence[SamplingParameters],
    kept_token_ids: tuple[int, ...],
    keys: mx.array | None,
) -> mx.array:
    """Draw a token for each row, with a key of its own, `[rows, 2]`, or with chance. See `filtered` for parameters."""
    logits, token_ids = filtered(logprobs, *parameters)
    xtc = parameters[0]
    if xtc.xtc_probability > 0:
        chance_keys, keys = (None, None) if keys is None else _split(keys)
        chance = _uniform(logits.shape[0], chance_keys)
        excluded = without_top_choices(logits, token_ids, xtc.xtc_threshold, kept_token_ids)
        logits = mx.where(chance < xtc.xtc_probability, excluded, logits)
    if keys is None:
        drawn = mx.random.categorical(logits)
    else:
        drawn = mx.argmax(logits + _gumbel(logits.shape[-1], keys), axis=-1)
    return mx.take_along_axis(token_ids, drawn[:, None], axis=-1)[:, 0]


def _gumbel(count: int, keys: mx.array) -> mx.array:
    """Return noise whose largest sum with logits is a draw by them, `[rows, count]`: each row's is its key's alone."""
    noise: mx.array = mx.vmap(lambda key: mx.random.gumbel(shape=(count,), key=key))(keys)
    return noise


def _split(keys: mx.array) -> tuple[mx.array, mx.array]:
    pairs: mx.array = mx.vmap(mx.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def _uniform(rows: int, keys: mx.array | None) -> mx.array:
    if keys is None:
        return mx.random.uniform(shape=(rows, 1))
    chance: mx.array = mx.vmap(lambda key: mx.random.uniform(shape=(1,), key=key))(keys)
    return chance


def _is_steered(parameters: SamplingParameters, end_token_ids: Sequence[int]) -> bool:
    return bool(
        parameters.repetition_penalty != 1
        or parameters.presence_penalty
        or parameters.frequency_penalty
        or parameters.logit_bias
        or (parameters.min_tokens > 0 and end_token_ids)
    )


class SteeredSampler:
    """Draws after it has changed the logits by what the request asked for and by what the sequence holds already.

    It belongs to one sequence and is called once for each of its tokens. What it remembers of them are arrays that
    depend on its own draws, so nothing waits for a token to be known. `made_token_ids` are the beginning of its answer,
    which another has drawn.
    """

    def __init__(
        self,
        parameters: SamplingParameters,
        prompt_token_ids: Sequence[int],
        end_token_ids: Sequence[int],
        draw: Sampler,
        made_token_ids: Sequence[int] = (),
    ) -> None:
        self._parameters = parameters
        self._prompt_token_ids = prompt_token_ids
        self._end_token_ids = list(end_token_ids)
        self._draw = draw
        self._made_token_ids = list(made_token_ids)
        self._drawn_tokens = len(made_token_ids)
        self._logits: mx.array | None = None
        self._is_seen: mx.array | None = None
        self._counts: mx.array | None = None

    @property
    def needs_logits(self) -> bool:
        """Whether the sampler must see logits, by `keep_logits`: a factor isn't the same for log-probabilities."""
        return self._parameters.repetition_penalty != 1

    def keep_logits(self, _context: mx.array, logits: mx.array) -> mx.array:
        """Remember the logits, `[1, vocabulary]`, for the draw that follows, and return them unchanged."""
        self._logits = logits
        return logits

    def __call__(self, logprobs: mx.array) -> mx.array:
        logits = logprobs if self._logits is None else self._logits
        # In float32: bfloat16 knows no difference of 0.1 between numbers above 16.
        token = self._draw(self._steered(logits.astype(mx.float32)))
        self._remember(token)
        return token

    def _steered(self, logits: mx.array) -> mx.array:
        asked = self._parameters
        if asked.repetition_penalty != 1:
            logits = repetition_penalised(logits, self._seen(logits), asked.repetition_penalty)
        if asked.logit_bias:
            token_ids, biases = zip(*asked.logit_bias, strict=True)
            logits = logits.at[:, mx.array(token_ids)].add(mx.array(biases, mx.float32))
        if asked.presence_penalty or asked.frequency_penalty:
            logits = count_penalised(
                logits, self._made(logits), asked.presence_penalty, asked.frequency_penalty
            )
        if self._end_token_ids and self._drawn_tokens < asked.min_tokens:
            logits = logits.at[:, mx.array(self._end_token_ids)].add(-mx.inf)
        return logits

    def _seen(self, logits: mx.array) -> mx.array:
        if self._is_seen is None:
            self._is_seen = mx.zeros(logits.shape[-1], mx.bool_)
            self._is_seen[mx.array([*self._prompt_token_ids, *self._made_token_ids])] = True
        return self._is_seen

    def _made(self, logits: mx.array) -> mx.array:
        if self._counts is None:
            self._counts = mx.zeros(logits.shape[-1], mx.float32)
            if self._made_token_ids:
                self._counts = self._counts.at[mx.array(self._made_token_ids)].add(1)
        return self._counts

    def _remember(self, token: mx.array) -> None:
        self._drawn_tokens += 1
        if self._is_seen is not None:
            self._is_seen[token] = True
        if self._counts is not None:
            self._counts = self._counts.at[token].add(1)


def repetition_penalised(logits: mx.array, is_seen: mx.array, penalty: float) -> mx.array:
    """Return logits with those of seen tokens divided by `penalty` where positive and multiplied where negative.

    As Keskar et al. 2019 and transformers have it; `is_seen` is `[vocabulary]`, of prompt and answer.
    """
    penalised = mx.where(logits < 0, logits * penalty, logits / penalty)
    return mx.where(is_seen, penalised, logits)


def count_penalised(
    logits: mx.array, counts: mx.array, presence: float, frequency: float
) -> mx.array:
    """Return logits less `presence` for each token made before and `frequency` for each time it was, as OpenAI has it.

    `counts` is `[vocabulary]`, of the answer alone.
    """
    return logits - presence * (counts > 0) - frequency * counts


def without_top_choices(
    logits: mx.array, token_ids: mx.array, threshold: float, kept_token_ids: Sequence[int] = ()
) -> mx.array:
    """Return logits without all but the least likely of the tokens that have a probability of at least `threshold`.

    Known as XTC. Where fewer than two are so likely nothing changes; `kept_token_ids`, those that end an answer, stay.
    `token_ids`, in the shape of the logits, says whose they are.
    """
    probabilities = mx.softmax(logits, axis=-1)
    is_likely = probabilities >= threshold
    least = mx.where(is_likely, probabilities, mx.inf).min(axis=-1, keepdims=True)
    is_excluded = is_likely & (probabilities > least)
    for kept_token_id in kept_token_ids:
        is_excluded = is_excluded & (token_ids != kept_token_id)
    return mx.where(is_excluded, -mx.inf, logits)


def filtered(logprobs: mx.array, *parameters: SamplingParameters) -> tuple[mx.array, mx.array]:
    """Return logits to draw from, scaled by temperature and excluded ones at -inf, and the token ids they belong to.

    Both are `[rows, vocabulary]`, or `[rows, top_k]`: what comes after top_k has little to do then, and drawing too.
    The parameters are one for all rows, or one for each; they have the same filters and the same `top_k`.
    """
    vocabulary, top_k = logprobs.shape[-1], parameters[0].top_k
    if 0 < top_k < vocabulary:
        token_ids = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)
        token_ids = token_ids[:, :top_k]
        logprobs = mx.take_along_axis(logprobs, token_ids, axis=-1)
    else:
        token_ids = mx.broadcast_to(mx.arange(vocabulary, dtype=mx.uint32), logprobs.shape)
    dtype = logprobs.dtype
    scaled = logprobs * _each([1 / one.temperature for one in parameters], dtype)
    if parameters[0].top_p < 1:
        scaled = _keep_top_p(scaled, _each([max(one.top_p, 1e-9) for one in parameters], dtype))
    if parameters[0].min_p > 0:
        scaled = _keep_min_p(scaled, _each([math.log(one.min_p) for one in parameters], dtype))
    return scaled, token_ids


def _each(values: list[float], dtype: mx.Dtype) -> Value:
    """Return a number for each row, `[rows, 1]`, or the number that all have; they round as one does by itself."""
    return values[0] if len(set(values)) == 1 else mx.array(values, dtype)[:, None]


def _keep_top_p(logits: mx.array, top_p: Value) -> mx.array:
    """Keep the fewest most likely tokens whose probabilities sum to at least `top_p`; never fewer than one.

    To sort a large vocabulary takes a CPU longer than a model's step: tokens that could be among them are picked first,
    and all of a row's are sorted only where those were too few. To know that, a large batch waits for its logits here.
    """
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    if logits.size >= MANY_LOGITS and mx.default_device() == mx.cpu:
        few = max(LEAST_PICKED, logits.shape[-1] // PICKED_PART)
        picked = mx.partition(logits, -few, axis=-1)[..., -few:]
        smallest_kept, is_enough = _smallest_of_top_p(picked, total, top_p)
        enough = cast("list[bool]", is_enough.tolist())
        if not all(enough):
            rows = mx.array([row for row, one in enumerate(enough) if not one])
            own = top_p[rows] if isinstance(top_p, mx.array) else top_p
            smallest_kept[rows], _ = _smallest_of_top_p(logits[rows], total[rows], own)
    else:
        smallest_kept, _ = _smallest_of_top_p(logits, total, top_p)
    return mx.where(logits >= smallest_kept, logits, -mx.inf)


def _smallest_of_top_p(
    logits: mx.array, total: mx.array, top_p: Value
) -> tuple[mx.array, mx.array]:
    """Return the smallest logit that is kept in each row, `[rows, 1]`, and whether there were enough, `[rows]`."""
    descending = -mx.sort(-logits, axis=-1)
    probabilities = mx.exp(descending - total)
    before = mx.cumsum(probabilities, axis=-1, inclusive=False)
    smallest = mx.where(before < top_p, descending, mx.inf).min(axis=-1, keepdims=True)
    return smallest, (before[..., -1:] + probabilities[..., -1:] >= top_p)[..., 0]


def _keep_min_p(logits: mx.array, log_min_p: Value) -> mx.array:
    """Keep tokens so much as likely as the most likely one, by the logarithm of that share."""
    smallest_kept = logits.max(axis=-1, keepdims=True) + log_min_p
    return mx.where(logits >= smallest_kept, logits, -mx.inf)
