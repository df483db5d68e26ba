"""A bounded form of `make chaos`: nothing is lost that must not be, and nothing is left over."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tools.chaos.clients import Heard
from tools.chaos.faults import FAULTS, STREAMS, compared
from tools.chaos.run import line, run
from tools.chaos.soak import report, soak

# Those that no other test covers, and one that kills.
BOUNDED = frozenset(
    {
        "engine killed",
        "engine aborts",
        "memory exhausted",
        "overload",
        "database locked",
        "traces locked",
        "disk full",
        "folder read-only",
        "clock set back",
    }
)
SOAKED = 600


async def test_faults_cost_no_request_its_answer(tmp_path: Path) -> None:
    said = list[str]()
    faults = [fault for fault in FAULTS if fault.name in BOUNDED]
    tallies = await run(tmp_path, said.append, faults)
    assert [tally.name for tally in tallies] == [
        *(fault.name for fault in faults),
        "engine of one killed",
        "SIGKILL",
        "SIGTERM",
    ]
    assert [tally.wrong for tally in tallies] == [[]] * len(tallies), "\n".join(said)
    assert [tally.fates for tally in tallies[:-3]] == [Counter(whole=STREAMS)] * len(faults)
    assert [tally.rows_lost for tally in tallies] == [0] * len(tallies)
    assert all(tally.rows_kept >= tally.sent for tally in tallies)
    assert tallies[-3].fates == Counter(whole=1)
    assert tallies[-2].fates["lost"] == STREAMS, "nobody can tell a client of a killed server"


async def test_a_soak_leaves_nothing_behind(tmp_path: Path) -> None:
    soaked = await soak(tmp_path, SOAKED, lambda _line: None)
    assert soaked.wrong == []
    assert soaked.kills
    fates = Counter(soaked.fates.values())
    assert fates.total() == SOAKED
    assert fates["whole"] > SOAKED / 2
    assert fates.keys() == {"whole", "refused", "left"}
    said = report(soaked)
    assert said.endswith("nothing differs")
    assert said.count("\n") > len(soaked.books)
    assert min(soaked.memory.engine) > 0
    assert len(soaked.memory.lives) == soaked.kills + 1


def heard(text: str = "abc", tokens: int = 3) -> Heard:
    return Heard(text, tokens, is_whole=True)


def test_a_missing_or_repeated_token_would_be_noticed() -> None:
    whole = [heard(), heard("other")]
    assert compared("x", [heard(), heard("other")], whole).wrong == []
    assert compared("x", [heard(), heard("othe")], whole).wrong
    assert compared("x", [heard(tokens=4), heard("other")], whole).wrong


def test_what_an_answer_has_become_is_told_by_what_its_client_has() -> None:
    assert heard().fate == "whole"
    assert Heard(status=503, code="overloaded", retry_after="1").fate == "refused"
    assert Heard("ab", code="shutting_down").fate == "told"
    assert Heard("ab").fate == "lost"


def test_the_report_says_what_is_wrong_below_its_fault() -> None:
    tally = compared("engine killed", [Heard("ab")], [heard()])
    tally.rows_kept, tally.rows_lost = 16, 1
    tally.wrong.append("lost: 1")
    first, second = line(tally).split("\n")
    assert first.split() == ["engine", "killed", "1", "0", "0", "0", "1", "0", "16", "1"]
    assert second == "  ! lost: 1"
