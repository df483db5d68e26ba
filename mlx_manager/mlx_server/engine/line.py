"""Whose turn it is among those that wait: by priority, by age, and by what their keys have used. Pure, no clock.

Those that an engine has lost had their turn already, and go first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain

from mlx_manager.mlx_server.engine.messages import Priority
from mlx_manager.mlx_server.engine.sequence import Sequence

LEVELS: Mapping[Priority, int] = {"high": 0, "normal": 1, "low": 2}
# Who has waited so long is treated as one priority higher, and again each time: nobody waits for ever.
AGEING_NS = 10_000_000_000
# Whose, how urgent, and whether it is new.
Group = tuple[str | None, Priority, bool]


class Shares:
    """How many tokens each key has used while it had anything to do.

    A key that comes anew starts level with the one that has used least: it is owed nothing for the time that it
    wasn't there.
    """

    def __init__(self) -> None:
        self._used: dict[str | None, int] = {}
        self._sequences: dict[str | None, int] = {}

    def join(self, key_id: str | None) -> None:
        """One more sequence of a key is here."""
        if key_id not in self._used:
            self._used[key_id] = min(self._used.values(), default=0)
        self._sequences[key_id] = self._sequences.get(key_id, 0) + 1

    def leave(self, key_id: str | None) -> None:
        """One sequence of a key has gone."""
        self._sequences[key_id] -= 1
        if self._sequences[key_id] == 0:
            del self._sequences[key_id], self._used[key_id]

    def charge(self, key_id: str | None, tokens: int) -> None:
        """A key, which is here, has used so many more."""
        self._used[key_id] += tokens

    def used(self, key_id: str | None) -> int:
        """Return what a key that is here has used."""
        return self._used[key_id]


class Line:
    """The sequences that wait."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        # Within a group, turns come in the order of arrival.
        self._groups: dict[Group, deque[Sequence]] = {}
        self._group_of: dict[int, Group] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(self._groups.values())

    @property
    def sequence_ids(self) -> list[int]:
        """Those that wait."""
        return list(self._group_of)

    def add(self, sequence: Sequence) -> None:
        """A sequence has come."""
        submit = sequence.submit
        group = (submit.key_id, submit.priority, submit.attempts == 0)
        self._groups.setdefault(group, deque()).append(sequence)
        self._group_of[sequence.id] = group

    def remove(self, sequence_id: int) -> Sequence | None:
        """Take a sequence out; None when it doesn't wait here."""
        group = self._group_of.pop(sequence_id, None)
        if group is None:
            return None
        members = self._groups[group]
        found = next(one for one in members if one.id == sequence_id)
        members.remove(found)
        if not members:
            del self._groups[group]
        return found

    def turns(self, now_ns: int) -> Iterator[Sequence]:
        """Yield all that wait, in the order of their turns; what keys are charged meanwhile changes those to come."""
        behind = {group: iter(tuple(members)) for group, members in self._groups.items()}
        heads = {group: next(members) for group, members in behind.items()}
        while heads:
            group = min(heads, key=lambda one: self._rank(heads[one], now_ns))
            yield heads[group]
            following = next(behind[group], None)
            if following is None:
                del heads[group]
            else:
                heads[group] = following

    def overtake(self, admitted: Sequence) -> None:
        """Count for everybody who came before `admitted` and still waits that it went first."""
        came_ns = admitted.stamps.received_ns
        for members in self._groups.values():
            for waiting in members:
                if waiting.stamps.received_ns >= came_ns:
                    break
                waiting.stamps.overtaken += 1

    def _rank(self, sequence: Sequence, now_ns: int) -> tuple[bool, int, int, int]:
        submit, came_ns = sequence.submit, sequence.stamps.received_ns
        level = LEVELS[submit.priority] - (now_ns - came_ns) // AGEING_NS
        return submit.attempts == 0, level, self._shares.used(submit.key_id), came_ns
