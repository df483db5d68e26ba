"""See that each request of a fault has its row in the audit log, or is one of those that the server says it lost."""

from __future__ import annotations

from dataclasses import dataclass, field

from tools.chaos.books import Audited, audited, unkept_rows
from tools.chaos.faults import Tally
from tools.chaos.server import Server
from tools.chaos.settling import settled


@dataclass(frozen=True, slots=True)
class Kept:
    """What the audit log had after a fault; `unkept` rows the process `pid` says that it could not keep."""

    audited: Audited = field(default_factory=Audited)
    unkept: int = 0
    pid: int | None = None


def differences(seen: Kept, before: Kept) -> list[str]:
    """Say what is wrong with the rows since `before`: those that are missing in silence, and those that are wrong."""
    lost = len(seen.audited.lost - before.audited.lost)
    # The count of another process began anew.
    told = seen.unkept - (before.unkept if seen.pid == before.pid else 0)
    silent = [f"{lost} requests have no audit row, {told} are counted as lost"]
    wrong = [text for text in seen.audited.wrong if text not in before.audited.wrong]
    return [*(silent if lost != told else []), *wrong]


async def count_rows(server: Server, tally: Tally, before: Kept) -> Kept:
    """Note in `tally` what has become of the rows since `before`, once the log has had its time to write them.

    A row that is missing and that the server doesn't count as lost is wrong, as is one that is not as it should be.
    """
    kept = await settled(lambda: _look(server, before), lambda seen: not differences(seen, before))
    tally.rows_kept = len(kept.audited.kept - before.audited.kept)
    tally.rows_lost = len(kept.audited.lost - before.audited.lost)
    tally.wrong += differences(kept, before)
    return kept


async def _look(server: Server, before: Kept) -> Kept:
    seen = audited(server.folder, server.fates)
    # Who has ended can't be asked, and so may have lost nothing.
    unkept = unkept_rows(await server.metrics()) if server.is_running else before.unkept
    return Kept(seen, unkept, server.pid)
