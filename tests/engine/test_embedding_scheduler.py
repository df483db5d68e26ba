"""Which inputs are computed together, in which order, and with how little padding."""

from __future__ import annotations

import random

from mlx_manager.mlx_server.engine.embedding_scheduler import (
    SMALL_BATCH_TOKENS,
    Batch,
    EmbeddingScheduler,
    Request,
)
from mlx_manager.mlx_server.engine.messages import Embed
from mlx_manager.mlx_server.engine.scheduler import Limits

LIMITS = Limits(max_batch=4, prefill_chunk_tokens=512, idle_prefill_chunk_tokens=2048)


def request(sequence_id: int, *lengths: int) -> Request:
    return Request.received(Embed(sequence_id, [[7] * length for length in lengths]), 0)


def scheduler(*requests: Request) -> EmbeddingScheduler:
    made = EmbeddingScheduler(LIMITS)
    for one in requests:
        made.add(one)
    return made


def batches(of: EmbeddingScheduler) -> list[Batch]:
    """All batches until nothing is left; requests go when their inputs have gone."""
    made = []
    while len(of):
        made.append(of.next_batch())
        for one in made[-1].requests:
            if not one.left:
                of.remove(one.id)
    return made


def rows(batch: Batch) -> list[tuple[int, int]]:
    return [(one.id, item.position) for one, item in batch.rows]


def test_every_input_is_computed_once_within_the_budget_and_mostly_not_padding() -> None:
    numbers = random.Random(1)
    lengths = [[numbers.randint(1, 400) for _ in range(numbers.randint(1, 60))] for _ in range(9)]
    made = batches(scheduler(*(request(n, *of) for n, of in enumerate(lengths))))

    taken = sorted(row for batch in made for row in rows(batch))
    assert taken == [(n, index) for n, of in enumerate(lengths) for index in range(len(of))]
    for batch in made:
        real = sum(len(one.token_ids) for _, one in batch.rows)
        assert batch.longest == max(len(one.token_ids) for _, one in batch.rows)
        assert batch.padded_tokens <= batch.budget_tokens
        assert batch.padded_tokens <= max(2 * real, SMALL_BATCH_TOKENS)


def test_a_request_alone_fills_larger_batches() -> None:
    lengths = [100] * 50
    alone = batches(scheduler(request(1, *lengths)))[0]
    beside = batches(scheduler(request(1, *lengths), request(2, *lengths)))[0]
    assert (len(alone.rows), len(beside.rows)) == (20, 5)


def test_an_input_beyond_the_budget_is_a_batch_of_its_own() -> None:
    made = batches(scheduler(request(1, 5000, 3)))
    assert [rows(batch) for batch in made] == [[(1, 0)], [(1, 1)]]


def test_a_small_request_waits_for_one_batch_of_a_large_one_at_most() -> None:
    of = scheduler(request(1, *[500] * 100))
    of.next_batch()
    of.add(request(2, 400))
    assert 2 in {one.id for batch in (of.next_batch(), of.next_batch()) for one in batch.requests}


def test_requests_share_a_batch() -> None:
    made = batches(scheduler(*(request(n, 20, 15) for n in range(8))))
    assert len(made) == 1
    assert len(made[0].requests) == 8


def test_nothing_to_do_is_an_empty_batch() -> None:
    of = scheduler(request(1, 3))
    assert of.remove(1) is not None
    assert of.remove(1) is None
    assert of.next_batch().rows == []
