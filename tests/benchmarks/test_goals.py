"""Which figures meet which goals: each once on either side of its bound."""

from __future__ import annotations

import pytest

from benchmarks.compare import BARE, MLX_LM_STREAMED, OURS, OURS_STREAMED
from benchmarks.contended import Contended
from benchmarks.figures import Figures, MemoryFigures, Spread
from benchmarks.followup import FollowUp
from benchmarks.goals import comparison_goals, contended_goals, followup_goals, memory_goal
from benchmarks.work import ModelName


def row(
    model: ModelName, clients: int, contender: str, ratio: float, extra_us: float = 0.0
) -> Figures:
    """Figures whose extremes lie on the other side of every goal: only the medians count."""
    return Figures(
        *(model, "even", clients, contender, 1, 0),
        tokens_per_s=Spread(1, 1, 1),
        ratio=Spread(ratio, 0, 9),
        first_token_p50_s=None,
        first_token_p99_s=None,
        gap_p50_s=None,
        gap_p99_s=None,
        cpu_us_per_token=Spread(1, 1, 1),
        api_cpu_us_per_token=0,
        engine_cpu_us_per_token=0,
        extra_cpu_us_per_token=Spread(extra_us, -99, 99),
        client_cpu_us_per_token=None,
    )


@pytest.mark.parametrize(
    ("model", "clients", "ratio", "expected"),
    [
        ("small", 1, 0.1, []),
        ("small", 4, 0.95, [True]),
        ("small", 4, 0.949, [False]),
        ("small", 64, 0.949, [False]),
        ("tiny", 1, 0.90, [True]),
        ("tiny", 4, 0.899, [False]),
    ],
)
@pytest.mark.parametrize("contender", [OURS, OURS_STREAMED])
def test_the_share_of_the_bare_loop(
    model: ModelName, clients: int, ratio: float, expected: list[bool], contender: str
) -> None:
    rows = [row(model, clients, BARE, 1.0), row(model, clients, contender, ratio)]
    assert [goal.is_met for goal in comparison_goals(rows)] == expected


@pytest.mark.parametrize(("extra_us", "is_met"), [(60, True), (60.1, False)])
def test_processor_time_beyond_the_bare_loop_counts_with_32_clients(
    extra_us: float, is_met: bool
) -> None:
    share, cpu = comparison_goals([row("small", 32, OURS, 1.0, extra_us)])
    assert (share.is_met, cpu.is_met) == (True, is_met)
    [_share] = comparison_goals([row("small", 16, OURS, 1.0, extra_us)])


@pytest.mark.parametrize(("theirs", "is_met"), [(0.76, True), (0.78, False), (0.0, True)])
def test_the_race_with_mlx_lm_s_server_is_run_streamed_by_the_small_steps_of_many(
    theirs: float, is_met: bool
) -> None:
    rows = [row("tiny", 16, OURS_STREAMED, 1.0), row("tiny", 16, MLX_LM_STREAMED, theirs)]
    share, times = comparison_goals(rows)
    assert (share.is_met, times.is_met) == (True, is_met)
    unraced: list[tuple[ModelName, int, str]] = [
        ("small", 16, OURS_STREAMED),
        ("tiny", 4, OURS_STREAMED),
        ("tiny", 16, OURS),
    ]
    for model, clients, contender in unraced:
        others = [row(model, clients, contender, 1.0), row(model, clients, MLX_LM_STREAMED, theirs)]
        assert len(list(comparison_goals(others))) == 1


@pytest.mark.parametrize(("beside_s", "is_met"), [(0.15, True), (0.151, False)])
def test_a_short_request_waits_for_little_more_than_a_piece_of_a_long_one(
    beside_s: float, is_met: bool
) -> None:
    own = Contended(OURS, beside_s=[0.0, beside_s, 9.0], piece_s=0.1)
    silent = Contended("mlx_lm.server", beside_s=[9.0])
    assert [goal.is_met for goal in contended_goals([own, silent])] == [is_met]


def test_a_second_turn_takes_little_of_what_the_first_took() -> None:
    met = FollowUp("tiny", 2_000, cold_s=[1.0, 2.0], warm_s=[0.1, 0.2], restart_s=[0.2, 0.4])
    missed = FollowUp("tiny", 8_000, cold_s=[1.0, 2.0], warm_s=[0.1, 0.21], restart_s=[0.2, 0.41])
    short = FollowUp("tiny", 1_000, cold_s=[1.0], warm_s=[1.0], restart_s=[1.0])
    bare = FollowUp("tiny", 2_000, BARE, cold_s=[1.0], warm_s=[1.0])
    goals = followup_goals([met, missed, short, bare])
    assert [goal.is_met for goal in goals] == [True, True, False, False]


@pytest.mark.parametrize(("growth_mib", "is_met"), [(2.0, True), (2.01, False)])
def test_a_process_keeps_its_size(growth_mib: float, is_met: bool) -> None:
    figures = MemoryFigures("API", 10_000, 100, 100 + growth_mib, growth_mib, 0, [])
    assert memory_goal(figures).is_met is is_met
