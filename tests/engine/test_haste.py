"""Which steps are told at once."""

from __future__ import annotations

import pytest

from mlx_manager.mlx_server.engine.messages import Ended, Pass, Stamps, Step
from mlx_manager.mlx_server.engine.worker import QUICK_STEP_S, Haste

TWO_ROWS = [1, 50, 2, 60]
QUICK_S = QUICK_STEP_S / 2


@pytest.mark.parametrize(
    ("step", "took_s", "can_wait"),
    [
        (Step(0, TWO_ROWS), QUICK_S, True),
        (Step(0, TWO_ROWS[:2]), QUICK_S, True),
        (Step(0, TWO_ROWS), 2 * QUICK_STEP_S, False),
        (Step(0, [*TWO_ROWS, 3, 70]), QUICK_S, False),
        (Step(0, TWO_ROWS, [3]), QUICK_S, False),
        (Step(0, TWO_ROWS, [], [Ended(1, "stop", Stamps(0))]), QUICK_S, False),
        (Pass(0), QUICK_S, False),
    ],
)
def test_only_quick_steps_of_some_more_tokens_can_wait(
    step: Step | Pass, took_s: float, can_wait: bool
) -> None:
    haste = Haste()
    haste.can_wait(Step(0, TWO_ROWS), QUICK_S)
    assert haste.can_wait(step, took_s) is can_wait


def test_the_first_tokens_can_not_wait() -> None:
    assert not Haste().can_wait(Step(0, TWO_ROWS), QUICK_S)
