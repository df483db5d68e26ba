"""Who waits, who runs, and how much prompt a step computes."""

from __future__ import annotations

import pytest

from mlx_manager.mlx_server.engine.messages import SamplingParameters, Submit
from mlx_manager.mlx_server.engine.scheduler import MAX_PREFILLS, Limits, Scheduler
from mlx_manager.mlx_server.engine.sequence import Sequence


def sequence(sequence_id: int) -> Sequence:
    return Sequence.received(Submit(sequence_id, [1, 2, 3], 5, [], SamplingParameters()), 0)


def scheduler(waiting: int, *, max_batch: int = 32, chunk: int = 512) -> Scheduler:
    """A scheduler with that many sequences in the queue, numbered from 1."""
    made = Scheduler(Limits(max_batch, chunk, 2048))
    for sequence_id in range(1, waiting + 1):
        made.add(sequence(sequence_id))
    return made


def ids(sequences: list[Sequence]) -> list[int]:
    return [sequence.id for sequence in sequences]


def start_decoding(scheduler: Scheduler) -> None:
    for running in scheduler.running.values():
        running.add_token(1, 1, False)


def test_sequences_are_admitted_in_the_order_they_came() -> None:
    assert ids(scheduler(3).admit()) == [1, 2, 3]


def test_the_batch_never_gets_wider_than_its_limit() -> None:
    full = scheduler(5, max_batch=3)
    assert ids(full.admit()) == [1, 2, 3]
    start_decoding(full)
    assert full.admit() == []
    full.remove(2)
    assert ids(full.admit()) == [4]
    assert list(full.running) == [1, 3, 4]


def test_only_so_many_prompts_are_computed_together() -> None:
    busy = scheduler(MAX_PREFILLS + 3)
    assert len(busy.admit()) == MAX_PREFILLS
    assert busy.admit() == []
    busy.running[1].add_token(1, 1, False)
    assert ids(busy.admit()) == [MAX_PREFILLS + 1]


def test_a_sequence_can_be_taken_out_of_the_queue_and_of_the_batch() -> None:
    some = scheduler(3, max_batch=1)
    some.admit()
    assert [removed.id for removed in (some.remove(1), some.remove(3)) if removed] == [1, 3]
    assert ids(some.admit()) == [2]


def test_an_unknown_sequence_is_not_taken_out() -> None:
    some = scheduler(1)
    assert some.remove(99) is None
    assert ids(some.admit()) == [1]


def test_there_is_work_while_anything_waits_or_runs() -> None:
    one = scheduler(1)
    assert one.has_work
    one.admit()
    assert one.has_work
    one.remove(1)
    assert not one.has_work


def test_a_sequence_that_has_the_engine_for_itself_gets_large_chunks() -> None:
    alone = scheduler(1)
    alone.admit()
    assert alone.chunk_tokens() == 2048


def test_chunks_are_small_as_soon_as_somebody_waits() -> None:
    one = scheduler(2, max_batch=1)
    one.admit()
    assert one.chunk_tokens() == 512


def test_chunks_are_small_while_somebody_decodes() -> None:
    two = scheduler(1)
    two.admit()
    start_decoding(two)
    two.add(sequence(2))
    two.admit()
    assert two.chunk_tokens() == 512


@pytest.mark.parametrize(("prompts", "share"), [(2, 256), (4, 128), (8, 64)])
def test_prompts_that_are_computed_together_share_the_step(prompts: int, share: int) -> None:
    shared = scheduler(prompts)
    shared.admit()
    assert shared.chunk_tokens() == share


def test_a_share_stays_large_enough_to_be_worth_a_pass() -> None:
    shared = scheduler(8, chunk=128)
    shared.admit()
    assert shared.chunk_tokens() == 64


def test_a_limit_smaller_than_that_is_kept() -> None:
    modest = scheduler(2, chunk=16, max_batch=1)
    modest.admit()
    assert modest.chunk_tokens() == 16
