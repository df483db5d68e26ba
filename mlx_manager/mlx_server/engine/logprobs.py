"""How likely the model found the tokens of a step, for those rows that asked."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_manager.mlx_server.engine.messages import Logprobs


def most_likely(
    sequence_ids: list[int], token_ids: list[int], counts: list[int], logits: mx.array
) -> list[Logprobs]:
    """Return each row's token's log-probability and those of its `counts` most likely tokens, best first.

    `logits` is `[rows, vocabulary]`, computed already, normalised or not. This waits for its result: called outside
    mlx-lm's stream, it doesn't wait for the next step, which is under way there.
    """
    # Where mlx-lm normalises it does so in the model's own format, whose 8 bits are too few for a sum of 150,000 terms.
    exact = logits.astype(mx.float32)
    exact = exact - mx.logsumexp(exact, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(exact, mx.array(token_ids)[:, None], axis=-1)
    top_ids = _top(exact, min(max(counts), exact.shape[-1]))
    top = mx.take_along_axis(exact, top_ids, axis=-1)
    mx.eval(chosen, top_ids, top)
    values: list[Any] = [chosen.tolist(), top_ids.tolist(), top.tolist()]
    rows = zip(sequence_ids, counts, *values, strict=True)
    return [
        Logprobs(sequence_id, logprob, ids[:count], others[:count])
        for sequence_id, count, [logprob], ids, others in rows
    ]


def _top(logprobs: mx.array, count: int) -> mx.array:
    """Return the ids of the `count` most likely tokens, best first: `[rows, count]`."""
    if count == 0:
        return mx.zeros((logprobs.shape[0], 0), mx.uint32)
    ids = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count]
    order = mx.argsort(-mx.take_along_axis(logprobs, ids, axis=-1), axis=-1)
    return mx.take_along_axis(ids, order, axis=-1)
