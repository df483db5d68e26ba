"""A soak looks at the memory of engines that live one after another: what grows from life to life is found."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from tools.chaos.memory import Memory
from tools.resident import resident_bytes


def lived(*most_mib: float) -> Memory:
    """Have seen engines one after another, each of which had so much at most and less at other times."""
    memory = Memory(api=[170.0], engine=[0.0])
    for pid, most in enumerate(most_mib):
        for mib in (most / 2, most, most - 1):
            memory.see_engine(pid, mib)
    return memory


def test_engines_that_are_as_large_as_their_predecessors_are_flat() -> None:
    memory = lived(85, 94, 95, 93, 95, 94, 94, 70)
    assert memory.engines_before_and_after() == (94, 94)
    assert memory.growth() == []
    assert memory.engine == [95]


def test_one_engine_in_many_may_have_more() -> None:
    assert lived(85, 94, 95, 93, 95, 109, 94, 70).growth() == []


def test_engines_that_become_larger_are_told() -> None:
    grown = lived(85, 94, 95, 93, 105, 106, 109, 70)
    assert grown.growth() == ["memory of the engines grew from 94 to 106 MiB"]


def test_engines_that_were_killed_young_or_not_at_all_are_not_compared() -> None:
    assert lived(60, 90).engines_before_and_after() is None
    assert lived(60, 90, 120).growth() == []


def test_an_api_process_that_becomes_larger_is_told() -> None:
    memory = lived(85)
    memory.api.append(188.0)
    assert memory.growth() == ["memory of the API process grew from 170 to 188 MiB"]


def test_who_has_ended_has_no_memory(tmp_path: Path) -> None:
    gone = psutil.Popen(["true"], cwd=tmp_path)
    gone.wait()
    mine = psutil.Process(os.getpid())
    assert resident_bytes([gone]) == 0
    assert resident_bytes([mine, gone]) > 2**20
