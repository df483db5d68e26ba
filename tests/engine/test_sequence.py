"""What the engine writes down of a sequence: when its tokens came, and pauses that are no longer usual."""

from __future__ import annotations

import pytest

from mlx_manager.mlx_server.engine.messages import SamplingParameters, Stamps, Submit
from mlx_manager.mlx_server.engine.sequence import Sequence

MS = 1_000_000


def record(*gaps_ms: int, beside_prefill: bool = False) -> Stamps:
    """The stamps of a sequence with these pauses between its tokens."""
    sequence = Sequence.received(Submit(1, [1], 1000, [], SamplingParameters()), 0)
    now_ns = 5 * MS
    sequence.add_token(now_ns, 1, False)
    for gap_ms in gaps_ms:
        now_ns += gap_ms * MS
        sequence.add_token(now_ns, 1, beside_prefill)
    return sequence.stamps


def stalls(*gaps_ms: int) -> list[tuple[int, int]]:
    """After which token each stall came, and how long it was."""
    return [(stall.after_token, stall.duration_ns // MS) for stall in record(*gaps_ms).stalls]


def test_a_long_pause_is_a_stall() -> None:
    assert stalls(10, 10, 10, 300, 10) == [(4, 300)]
    stall = record(10, 10, 10, 300).stalls[0]
    assert (stall.began_ns, stall.beside_prefill) == (35 * MS, False)


def test_a_pause_beside_the_prompts_of_others_says_so() -> None:
    assert record(10, 10, 10, 300, beside_prefill=True).stalls[0].beside_prefill


def test_a_short_pause_is_none_however_fast_the_others_were() -> None:
    assert stalls(1, 1, 1, 1, 249) == []


def test_a_slow_model_does_not_stall_at_each_token() -> None:
    assert stalls(400, 410, 390, 1200, 400) == []
    assert stalls(400, 410, 390, 4000, 400) == [(4, 4000)]


def test_without_a_few_tokens_before_nobody_knows_what_is_usual() -> None:
    assert stalls(10, 10, 300) == []
    assert stalls(300, 10, 10) == []


def test_one_stall_does_not_hide_the_next() -> None:
    assert stalls(10, 10, 10, 5000, 10, 300) == [(4, 5000), (6, 300)]


def test_a_sequence_that_stalls_for_ever_keeps_the_first_sixteen() -> None:
    found = stalls(*[10, 10, 10, 300] * 40)
    assert len(found) == 16
    assert found[0] == (4, 300)
    assert found[-1] == (64, 300)


def test_a_short_answer_has_the_time_of_each_token() -> None:
    stamps = record(10, 10, 40)
    assert stamps.token_offsets_us == [0, 10_000, 20_000, 60_000]
    assert stamps.token_stride == 1


@pytest.mark.parametrize(
    ("tokens", "stride", "kept"),
    [(1, 1, 1), (256, 1, 256), (257, 2, 129), (512, 2, 256), (513, 4, 129), (3000, 16, 188)],
)
def test_a_long_answer_has_the_time_of_every_so_manyth_token(
    tokens: int, stride: int, kept: int
) -> None:
    stamps = record(*[3] * (tokens - 1))
    assert stamps.token_stride == stride
    assert stamps.token_offsets_us == [3000 * number for number in range(0, tokens, stride)]
    assert len(stamps.token_offsets_us) == kept <= 256
