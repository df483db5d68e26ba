"""Give fresh weights two attention heads that copy: what followed this token before follows it again.

A model this small doesn't find the trick by itself in the time that there is, so it starts with it;
training then tunes it. One head notes for every token which one came before it. A head in a later
layer looks for the place whose note is the current token, and says what stood there.
"""

import math
from typing import Any

import mlx.core as mx
from mlx_lm.models.qwen3 import Model

EMBEDDING_STD = 0.05
# Where the circuit keeps things in the residual stream: one dimension is the same for every token,
# some say which token this is, some say which token came before.
CONSTANT = 0
IDENTITY = slice(1, 65)
PREVIOUS = slice(128, 192)
NOTING_LAYER, COPYING_LAYER = 0, 1
# Fast rotary pairs tell neighbours apart; slow ones hardly turn, so they can compare content.
NEIGHBOUR_PAIRS = 5
FIRST_SLOW_PAIR = 12
NOTE_SHARPNESS, MATCH_SHARPNESS = 6.0, 4.0
NOTE_GAIN, COPY_GAIN = 1.5, 8.0


def add_copying(model: Model) -> None:
    """Set the embeddings, and head 0 of two layers, so that the model copies repeated text."""
    embedding = model.model.embed_tokens
    weight = mx.random.normal(embedding.weight.shape) * EMBEDDING_STD
    weight[:, CONSTANT] = 3 * EMBEDDING_STD
    weight[:, PREVIOUS] = weight[:, PREVIOUS] * 0.1
    embedding.weight = weight
    for layer in model.layers:
        _quieten(layer)
    _note_what_came_before(model.layers[NOTING_LAYER].self_attn, _theta(model))
    _say_what_followed(model.layers[COPYING_LAYER].self_attn)


def _quieten(layer: Any) -> None:
    """Let a fresh layer write little, so that what the embeddings say survives it."""
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        linear.weight = mx.random.normal(linear.weight.shape) * EMBEDDING_STD / 8


def _theta(model: Model) -> float:
    theta = model.args.rope_theta
    assert theta is not None  # ModelArgs refuses a config without it
    return theta


def _note_what_came_before(attention: Any, theta: float) -> None:
    """Make head 0 attend to the token before and copy its identity to `PREVIOUS`.

    Queries and keys are constant vectors, so that only the rotary phase counts: the query is turned
    by one position against the key, which makes the score highest at distance one.
    """
    dim = _head_dim(attention)
    half = dim // 2
    query, key = mx.zeros((dim,)), mx.zeros((dim,))
    for pair in range(NEIGHBOUR_PAIRS):
        angle = theta ** (-pair / half)
        key[pair] = 1.0
        query[pair], query[pair + half] = math.cos(angle), -math.sin(angle)
    slots = [*range(NEIGHBOUR_PAIRS), *range(half, half + NEIGHBOUR_PAIRS)]
    reads = [mx.zeros((dim, attention.q_proj.weight.shape[1])) for _ in range(2)]
    reads[0][:, CONSTANT], reads[1][:, CONSTANT] = query, key
    _set_reading(attention, reads[0], reads[1], slots, NOTE_SHARPNESS)
    _carry(attention, IDENTITY, PREVIOUS, NOTE_GAIN * EMBEDDING_STD)


def _say_what_followed(attention: Any) -> None:
    """Make head 0 find where the current token came before, and say what followed it there."""
    dim = _head_dim(attention)
    half = dim // 2
    slots = [*range(FIRST_SLOW_PAIR, half), *range(half + FIRST_SLOW_PAIR, dim)]
    query, key = (mx.zeros((dim, attention.q_proj.weight.shape[1])) for _ in range(2))
    for place, slot in enumerate(slots):
        query[slot, IDENTITY.start + place] = 1.0
        key[slot, PREVIOUS.start + place] = 1.0
    _set_reading(attention, query, key, slots, MATCH_SHARPNESS)
    _carry(attention, IDENTITY, IDENTITY, COPY_GAIN * EMBEDDING_STD)


def _head_dim(attention: Any) -> int:
    size: int = attention.q_norm.weight.shape[0]
    return size


def _set_reading(
    attention: Any, query: mx.array, key: mx.array, slots: list[int], sharpness: float
) -> None:
    """Let head 0 compare `query` with `key`, both `[head_dim, hidden]`, sharply in these slots."""
    dim = _head_dim(attention)
    attention.q_proj.weight[:dim], attention.k_proj.weight[:dim] = query, key
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight[mx.array(slots)] = math.sqrt(sharpness)


def _carry(attention: Any, source: slice, target: slice, gain: float) -> None:
    """Let head 0 move the residual dimensions `source` to `target`."""
    dim = _head_dim(attention)
    value, output = (
        mx.zeros((dim, attention.v_proj.weight.shape[1])),
        mx.zeros((attention.o_proj.weight.shape[0], dim)),
    )
    value[:, source] = mx.eye(dim)
    output[target] = mx.eye(dim) * gain
    attention.v_proj.weight[:dim] = value
    attention.o_proj.weight[:, :dim] = output
