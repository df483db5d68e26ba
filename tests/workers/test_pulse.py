"""An engine is unwell when it is silent, and when it speaks and none of its work moves."""

from __future__ import annotations

from itertools import count

from mlx_manager.mlx_server.engine.messages import Vitals
from mlx_manager.mlx_server.workers.pulse import Pulse


def vitals(progress: int, *sequence_ids: int) -> Vitals:
    return Vitals(0, 0, 0, 0, 0, sequence_ids=list(sequence_ids), progress=progress)


def beats_until_fault(pulse: Pulse, progress: count[int] | None, *sequence_ids: int) -> int | None:
    for beats in range(1, 20):
        pulse.beat(vitals(next(progress) if progress else 7, *sequence_ids))
        if pulse.fault:
            return beats
    return None


def test_silence_is_a_fault_until_it_speaks() -> None:
    pulse = Pulse(60.0)
    assert pulse.fault is None
    pulse.heard_s -= 61
    assert pulse.fault == "stalled for 60 s"
    pulse.hear()
    assert pulse.fault is None


def test_work_that_stands_still_for_as_many_beats_as_the_time_has_seconds_is_a_fault() -> None:
    pulse = Pulse(3.0)
    # The first one says how far the work is, the next three are still within the time.
    assert beats_until_fault(pulse, None, 1) == 5
    assert pulse.fault == "got nothing done for 3 s"
    pulse.beat(vitals(8, 1))
    assert pulse.fault is None


def test_work_that_moves_and_an_engine_without_any_are_well() -> None:
    assert beats_until_fault(Pulse(3.0), count(1), 1, 2) is None
    assert beats_until_fault(Pulse(3.0), None) is None
