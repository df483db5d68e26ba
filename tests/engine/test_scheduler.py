"""Who waits, who runs, and how much prompt a step computes."""

from __future__ import annotations

import pytest

from mlx_manager.mlx_server.engine.line import AGEING_NS
from mlx_manager.mlx_server.engine.messages import KvCost, Priority, SamplingParameters, Submit
from mlx_manager.mlx_server.engine.read_prompt import ReadPrompt
from mlx_manager.mlx_server.engine.scheduler import (
    MAX_LONG_PREFILLS,
    MAX_PREFILLS,
    RETURN_NS,
    Limits,
    Piece,
    Scheduler,
)
from mlx_manager.mlx_server.engine.sequence import Sequence

GAP_NS = 100_000_000


def sequence(
    sequence_id: int,
    prompt_tokens: int = 400,
    *,
    priority: Priority = "normal",
    key_id: str | None = None,
    max_tokens: int = 5,
    expected_tokens: int | None = None,
    came_ns: int | None = None,
    attempts: int = 0,
) -> Sequence:
    submit = Submit(
        sequence_id,
        [1] * prompt_tokens,
        max_tokens,
        [],
        SamplingParameters(),
        priority=priority,
        key_id=key_id,
        expected_tokens=expected_tokens,
        attempts=attempts,
    )
    return Sequence.received(submit, sequence_id if came_ns is None else came_ns)


def scheduler(
    waiting: int, prompt_tokens: int = 400, *, max_batch: int = 32, chunk: int = 512
) -> Scheduler:
    """A scheduler with that many sequences in the queue, numbered from 1."""
    made = Scheduler(limited(max_batch, chunk))
    for sequence_id in range(1, waiting + 1):
        made.add(sequence(sequence_id, prompt_tokens))
    return made


def limited(
    max_batch: int = 32,
    chunk: int = 512,
    kv_cost: KvCost | None = None,
    kv_budget_bytes: int | None = None,
) -> Limits:
    return Limits(max_batch, chunk, 2048, GAP_NS, kv_cost, kv_budget_bytes)


def ids(sequences: list[Sequence]) -> list[int]:
    return [sequence.id for sequence in sequences]


def start_decoding(scheduler: Scheduler) -> None:
    for running in scheduler.running.values():
        running.unread_tokens = 0
        running.add_token(1, 1, False)


def learn(scheduler: Scheduler, *, token_ns: int, step_ns: int = 0) -> None:
    """Let it measure steps in which a prompt token, and those that only decode, took so long."""
    for _ in range(3):
        scheduler.note(token_ns * 100, 100, 0)
        if step_ns:
            scheduler.note(step_ns, 0, 1)


def test_sequences_are_admitted_in_the_order_they_came() -> None:
    assert ids(scheduler(3).admit(10)) == [1, 2, 3]


def test_the_batch_never_gets_wider_than_its_limit() -> None:
    full = scheduler(5, max_batch=3)
    assert ids(full.admit(10)) == [1, 2, 3]
    start_decoding(full)
    assert full.admit(10) == []
    full.remove(2)
    assert ids(full.admit(10)) == [4]
    assert list(full.running) == [1, 3, 4]


def test_only_so_many_prompts_are_computed_together() -> None:
    busy = scheduler(MAX_PREFILLS + 3, prompt_tokens=3)
    assert len(busy.admit(100)) == MAX_PREFILLS
    assert busy.admit(100) == []
    busy.running[1].read(64)
    assert ids(busy.admit(100)) == [MAX_PREFILLS + 1]


def test_a_short_prompt_finds_a_place_beside_any_number_of_long_ones() -> None:
    busy = scheduler(10, prompt_tokens=32_000)
    busy.add(sequence(11, 100))
    assert ids(busy.admit(100)) == [*range(1, MAX_LONG_PREFILLS + 1), 11]


def test_on_a_slow_machine_fewer_long_prompts_share_a_step() -> None:
    slow = scheduler(10, prompt_tokens=32_000)
    learn(slow, token_ns=GAP_NS // 100)
    assert len(slow.admit(100)) == 2


def test_a_sequence_can_be_taken_out_of_the_queue_and_of_the_batch() -> None:
    some = scheduler(3, max_batch=1)
    some.admit(10)
    assert [removed.id for removed in (some.remove(1), some.remove(3)) if removed] == [1, 3]
    assert ids(some.admit(10)) == [2]


def test_an_unknown_sequence_is_not_taken_out() -> None:
    some = scheduler(1)
    assert some.remove(99) is None
    assert ids(some.admit(10)) == [1]


def test_there_is_work_while_anything_waits_or_runs() -> None:
    one = scheduler(1)
    assert one.has_work(10)
    one.admit(10)
    assert one.has_work(10)
    one.remove(1)
    assert not one.has_work(10)


def test_what_is_urgent_goes_first_and_what_can_wait_last() -> None:
    mixed = Scheduler(limited())
    priorities: tuple[Priority, ...] = ("low", "normal", "high", "low", "high")
    for sequence_id, priority in enumerate(priorities, 1):
        mixed.add(sequence(sequence_id, 3, priority=priority))
    admitted = mixed.admit(10)
    assert ids(admitted) == [3, 5, 2, 1, 4]
    assert [one.stamps.overtaken for one in sorted(admitted, key=lambda one: one.id)] == [
        *(3, 2, 0, 1, 0),
    ]


def test_nobody_waits_for_ever() -> None:
    """However many come that are more urgent: two levels of age make up for two of priority."""
    busy = Scheduler(limited(max_batch=1))
    busy.add(sequence(1, 3, priority="low", came_ns=0))
    for at in range(1, 30):
        busy.add(sequence(1 + at, 3, priority="high", came_ns=at * AGEING_NS // 10))
        [admitted] = busy.admit(at * AGEING_NS // 10)
        busy.remove(admitted.id)
        if admitted.id == 1:
            break
    assert at == 20


def test_keys_take_turns_however_much_one_of_them_asks() -> None:
    shared = Scheduler(limited(max_batch=4))
    for sequence_id in range(1, 21):
        shared.add(sequence(sequence_id, 100, key_id="greedy"))
    for sequence_id in range(21, 24):
        shared.add(sequence(sequence_id, 100, key_id="modest"))
    assert ids(shared.admit(30)) == [1, 21, 2, 22]


def test_what_a_key_has_used_counts_in_tokens() -> None:
    shared = Scheduler(limited(max_batch=3))
    for sequence_id, key_id, prompt_tokens in ((1, "long", 300), (2, "long", 300)):
        shared.add(sequence(sequence_id, prompt_tokens, key_id=key_id))
    for sequence_id in range(3, 7):
        shared.add(sequence(sequence_id, 100, key_id="short"))
    assert ids(shared.admit(30)) == [1, 3, 4]
    for sequence_id in (3, 4):
        shared.charge(shared.running[sequence_id], 200)
        shared.remove(sequence_id)
    assert ids(shared.admit(30)) == [2, 5], "the answers of the short ones were long"


def test_a_key_that_was_away_is_owed_nothing() -> None:
    shared = Scheduler(limited(max_batch=1))
    shared.add(sequence(1, 1000, key_id="old"))
    shared.add(sequence(2, 1000, key_id="old"))
    shared.admit(10)
    shared.add(sequence(3, 10, key_id="new"))
    shared.add(sequence(4, 10, key_id="new"))
    turns = list[int]()
    for _ in range(3):
        shared.remove(next(iter(shared.running)))
        turns += ids(shared.admit(10))
    assert turns == [2, 3, 4]


def begin(sequences: list[Sequence]) -> None:
    """Let them have their first tokens."""
    for one in sequences:
        one.unread_tokens, one.stamps.first_token_ns = 0, 1


def test_one_that_was_lost_goes_before_all_that_are_new() -> None:
    full = Scheduler(limited(max_batch=1))
    full.add(sequence(1, priority="high"))
    full.add(sequence(2, key_id="a"))
    full.add(sequence(3, key_id="a", attempts=1))
    turns = list[int]()
    for _ in range(3):
        turns += ids(full.admit(10))
        full.remove(turns[-1])
    assert turns == [3, 1, 2]


def test_the_places_of_a_lost_batch_are_kept_a_moment_for_those_that_come_back() -> None:
    lost = scheduler(2)
    lost.keep_places(10)
    assert not lost.has_work(11)
    assert lost.admit(11) == []
    lost.add(sequence(3, attempts=1))
    assert lost.has_work(12)
    assert ids(lost.admit(12)) == [3]
    assert ids(lost.admit(10 + RETURN_NS)) == [1, 2]


def test_one_that_was_lost_twice_begins_when_all_others_have_begun_and_nobody_beside_it() -> None:
    some = Scheduler(limited())
    some.add(sequence(1))
    first = some.admit(10)
    for sequence_id, attempts in ((2, 2), (3, 2), (4, 1), (5, 0)):
        some.add(sequence(sequence_id, attempts=attempts))
    assert some.admit(10) == [], "one reads its prompt"
    begin(first)
    [suspect] = some.admit(10)
    assert suspect.id == 2
    assert some.admit(10) == []
    begin([suspect])
    other = some.admit(10)
    assert ids(other) == [3]
    begin(other)
    assert ids(some.admit(10)) == [4, 5]


COST = KvCost(1)
ROW = 1024  # bytes of a sequence of 769 to 1,024 tokens


def test_what_does_not_fit_now_waits_until_it_does() -> None:
    tight = Scheduler(limited(kv_cost=COST, kv_budget_bytes=3 * ROW))
    for sequence_id in range(1, 6):
        tight.add(sequence(sequence_id, 700, max_tokens=200))
    assert ids(tight.admit(10)) == [1, 2, 3]
    assert tight.admit(10) == []
    tight.remove(2)
    [fourth] = tight.admit(10)
    assert fourth.id == 4
    assert (fourth.stamps.queue_reason, fourth.stamps.kv_bytes) == ("memory", ROW)


def test_every_row_is_counted_as_long_as_the_longest() -> None:
    tight = Scheduler(limited(kv_cost=COST, kv_budget_bytes=4 * ROW))
    for sequence_id, prompt_tokens in ((1, 10), (2, 10), (3, 2000)):
        tight.add(sequence(sequence_id, prompt_tokens))
    assert ids(tight.admit(10)) == [1, 2]


def test_what_is_small_goes_first_while_something_large_waits_for_memory_but_not_for_ever() -> None:
    tight = Scheduler(limited(kv_cost=COST, kv_budget_bytes=4 * ROW))
    tight.add(sequence(1, 10))
    tight.admit(1)
    tight.add(sequence(2, 4000, came_ns=2))
    tight.add(sequence(3, 10, came_ns=3))
    assert ids(tight.admit(4)) == [3]
    tight.add(sequence(4, 10, came_ns=5))
    assert tight.admit(AGEING_NS + 5) == []
    tight.remove(1)
    tight.remove(3)
    assert ids(tight.admit(AGEING_NS + 6)) == [2]


def test_an_answer_of_unknown_length_is_counted_as_long_as_is_expected_and_then_as_it_is() -> None:
    tight = Scheduler(limited(kv_cost=COST, kv_budget_bytes=2 * ROW))
    tight.add(sequence(1, 480, max_tokens=30_000, expected_tokens=480))
    tight.add(sequence(2, 480, max_tokens=30_000, expected_tokens=480))
    assert ids(tight.admit(10)) == [1, 2]
    tight.remove(2)
    tight.running[1].stamps.output_tokens = 600
    tight.add(sequence(3, 480, max_tokens=30_000, expected_tokens=480))
    assert tight.admit(10) == []


def test_a_prompt_that_is_kept_for_others_is_counted_until_the_last_of_them_begins() -> None:
    tight = Scheduler(limited(kv_cost=COST, kv_budget_bytes=4 * ROW))
    read = ReadPrompt(799, [])
    for sequence_id in range(1, 6):
        sibling = sequence(sequence_id, 800, max_tokens=100)
        sibling.share(read)
        tight.add(sibling)
    assert ids(tight.admit(10)) == [1, 2, 3]
    tight.remove(1)
    assert ids(tight.admit(10)) == [4, 5], "the last one leaves no copy behind"
    assert {one.stamps.kv_bytes for one in tight.running.values()} == {ROW}


def test_what_fits_alone_runs_alone() -> None:
    tight = Scheduler(limited(kv_cost=COST, kv_budget_bytes=ROW))
    tight.add(sequence(1, 5000))
    assert ids(tight.admit(10)) == [1]


def test_windows_and_states_are_counted() -> None:
    cost = KvCost(token_bytes=10, windows=((100, 512),), state_bytes=7)
    assert cost.row_bytes(1) == 256 * 110 + 7
    assert cost.row_bytes(257) == 512 * 110 + 7
    assert cost.row_bytes(513) == 768 * 10 + 512 * 100 + 7


def test_a_sequence_that_has_the_engine_for_itself_gets_large_chunks() -> None:
    alone = scheduler(1, prompt_tokens=32_000)
    learn(alone, token_ns=1000)
    alone.admit(10)
    assert alone.next_piece().tokens == 2048


def test_chunks_are_small_as_soon_as_somebody_waits() -> None:
    one = scheduler(2, max_batch=1)
    learn(one, token_ns=1000)
    one.admit(10)
    assert one.next_piece().tokens == 512


def test_a_chunk_takes_as_long_as_the_next_token_of_running_rows_may() -> None:
    two = scheduler(1)
    two.admit(10)
    start_decoding(two)
    two.add(sequence(2, 32_000))
    two.admit(10)
    assert two.next_piece().tokens == 256, "nothing is known yet"
    learn(two, token_ns=GAP_NS // 400, step_ns=GAP_NS // 4)
    assert two.next_piece().tokens == 300
    learn(two, token_ns=GAP_NS, step_ns=GAP_NS)
    learn(two, token_ns=GAP_NS, step_ns=GAP_NS)
    assert two.next_piece().tokens == 16, "but it goes on"


def test_alone_a_chunk_may_take_four_times_as_long() -> None:
    alone = scheduler(1, prompt_tokens=32_000)
    learn(alone, token_ns=GAP_NS // 100)
    alone.admit(10)
    assert alone.next_piece().tokens == 400


def test_one_disturbed_step_changes_nothing() -> None:
    alone = scheduler(1, prompt_tokens=32_000)
    learn(alone, token_ns=GAP_NS // 100)
    alone.note(GAP_NS * 1000, 100, 0)
    alone.admit(10)
    assert alone.next_piece().tokens == 400


@pytest.mark.parametrize(("prompts", "share"), [(2, 256), (4, 128), (8, 64)])
def test_prompts_that_are_computed_together_share_the_step(prompts: int, share: int) -> None:
    shared = scheduler(prompts)
    learn(shared, token_ns=1000)
    shared.admit(10)
    assert shared.next_piece().tokens == share


def test_a_share_stays_large_enough_to_be_worth_a_pass() -> None:
    shared = scheduler(8, prompt_tokens=128, chunk=128)
    shared.admit(10)
    assert shared.next_piece().tokens == 64


def test_a_limit_smaller_than_that_is_kept() -> None:
    modest = scheduler(2, chunk=16, max_batch=1)
    modest.admit(10)
    assert modest.next_piece().tokens == 16


def mixed(*prompt_tokens: int) -> Scheduler:
    """Prompts of such lengths are being read, numbered from 1."""
    made = Scheduler(limited())
    learn(made, token_ns=1000)
    for sequence_id, tokens in enumerate(prompt_tokens, 1):
        made.add(sequence(sequence_id, tokens))
    made.admit(10)
    return made


def test_short_prompts_share_a_lane_and_long_ones_have_their_own() -> None:
    some = mixed(100, 1025, 32_000, 1024)
    assert [one.lane for one in some.running.values()] == [None, 2, 3, None]


def test_a_short_prompt_is_read_next_and_then_every_second_time() -> None:
    some = mixed(32_000, 101, 101)
    assert [some.next_piece() for _ in range(4)] == [Piece(256, None), Piece(512, 1)] * 2


def test_a_lane_in_which_somebody_needs_a_piece_goes_before_one_in_which_all_need_more() -> None:
    some = mixed(32_000, 1000, 101)
    assert [some.next_piece() for _ in range(2)] == [Piece(256, None), Piece(512, 1)]
    some.running[3].unread_tokens = 0
    begin([some.running[3]])
    assert [some.next_piece() for _ in range(2)] == [Piece(512, None), Piece(512, 1)]


def test_what_long_prompts_have_cost_counts_for_those_that_come() -> None:
    """A first piece that took too long isn't held against all others, though no short prompt follows it."""
    some = Scheduler(limited())
    some.note(GAP_NS, 16, 0)
    for lane in range(1, 4):
        some.add(sequence(lane, 32_000))
        some.admit(10)
        some.note(GAP_NS // 100, 100, 0, lane=lane)
        some.remove(lane)
    some.add(sequence(4, 32_000))
    some.add(sequence(5, 32_000))
    some.admit(10)
    assert some.next_piece() == Piece(512, 4)


@pytest.mark.parametrize(
    ("unread", "read"), [(99, 100), (100, 100), (101, 101), (150, 150), (151, 100), (32_000, 100)]
)
def test_a_piece_takes_along_what_would_be_left_for_a_small_one(unread: int, read: int) -> None:
    two = Scheduler(limited())
    learn(two, token_ns=GAP_NS // 100)
    for sequence_id, prompt_tokens in ((1, 100), (2, unread + 1)):
        two.add(sequence(sequence_id, prompt_tokens))
    begin(two.admit(10)[:1])
    assert two.next_piece().tokens == read


def test_a_piece_takes_nothing_along_beyond_the_limit_in_tokens() -> None:
    alone = scheduler(1, prompt_tokens=2100)
    learn(alone, token_ns=1000)
    alone.admit(10)
    assert alone.next_piece().tokens == 2048


def test_long_prompts_take_turns_whether_or_not_short_ones_come_between() -> None:
    some = mixed(32_000, 32_000, 32_000, 101)
    assert [some.next_piece().lane for _ in range(6)] == [None, 1, None, 2, None, 3]
    some.remove(4)
    some.add(sequence(5, 32_000))
    some.admit(10)
    assert [some.next_piece().lane for _ in range(5)] == [5, 1, 2, 3, 5]


def test_a_long_prompt_of_which_a_piece_is_left_goes_before_the_others() -> None:
    some = mixed(32_000, 32_000)
    some.running[2].found(31_900)
    assert [some.next_piece().lane for _ in range(3)] == [2, 1, 2]


def test_what_a_token_costs_behind_a_long_prompt_counts_there_only() -> None:
    some = mixed(32_000, 101)
    for _ in range(3):
        some.note(GAP_NS, 64, 0, lane=1)
    assert [some.next_piece() for _ in range(2)] == [Piece(512, None), Piece(64, 1)]
    some.add(sequence(3, 32_000))
    some.admit(10)
    assert [some.next_piece() for _ in range(2)] == [Piece(512, None), Piece(512, 3)]


def test_prompts_stand_still_while_a_first_token_is_made_but_only_so_long() -> None:
    two = Scheduler(limited())
    two.add(sequence(1, 32_000))
    two.add(sequence(2, 1))
    two.admit(10)
    assert [two.next_piece().tokens > 0 for _ in range(6)] == [False, False, True] * 2
    start_decoding(two)
    two.running[1].unread_tokens = 500
    assert two.next_piece().tokens > 0
