"""Room in memory for one more model: what has to go for it, and who gets what is free."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.pool.fit import Need
from mlx_manager.mlx_server.pool.ledger import Ledger, Reservation
from mlx_manager.mlx_server.pool.refusal import Claim, no_place, no_room, too_large
from mlx_manager.mlx_server.pool.resident import Resident
from mlx_manager.mlx_server.pool.stored_prompts import come_back, givable_bytes, make_way, tell_room


class Room:
    """The budget of `ledger` and `max_loaded` places. `residents`, the longest unused first, is who has them now.

    Engines have `patience_s` to give back what is taken from their stored prompts.
    """

    def __init__(
        self,
        ledger: Ledger,
        max_loaded: int,
        residents: dict[str, Resident],
        is_pinned: Callable[[ModelFiles], bool],
        unload: Callable[[Resident], Awaitable[None]],
        patience_s: float,
    ) -> None:
        self._ledger = ledger
        self._max_loaded = max_loaded
        self._residents = residents
        self._is_pinned = is_pinned
        self._unload = unload
        self._patience_s = patience_s

    @property
    def committed_bytes(self) -> int:
        """What all models in memory count for in the budget."""
        return sum(resident.committed_bytes for resident in self._residents.values())

    @property
    def free_bytes(self) -> int:
        """What is left of it; negative when they hold more than was set aside."""
        return self._ledger.budget_bytes - self.committed_bytes

    async def make(self, files: ModelFiles, need: Need) -> tuple[str, ...]:
        """Take from stored prompts, or unload, what has to go for a model, and return which were unloaded.

        Prompts of models that nobody uses go first, then such models, then prompts of those in use. Takes nothing when
        all of that wouldn't do.
        """
        if need.total_bytes > self._ledger.budget_bytes:
            raise too_large(files, need, self._ledger.budget_bytes)
        evicted, late = list[str](), list[Resident]()
        # Looked at anew each time: while room is made, a model may come into use.
        while (missing_bytes := self._missing_bytes(need)) > 0 or self._is_full:
            idle, staying = self._idle_and_staying()
            from_idle = [one for one in idle if one not in late]
            from_staying = [one for one in staying if one not in late]
            most_bytes = sum(one.committed_bytes for one in idle) + givable_bytes(from_staying)
            if missing_bytes > most_bytes:
                claims = self._claims()
                raise no_room(files, need, self.free_bytes, self._ledger.budget_bytes, claims)
            if not self._is_full and missing_bytes <= givable_bytes(from_idle):
                # With what the new one's own prompts are to have: it is the one in use.
                wanted_bytes = missing_bytes + self._ledger.wanted_bytes(files)
                late += await make_way(from_idle, wanted_bytes, self._patience_s)
            elif idle:
                await self._unload(idle[0])
                evicted.append(idle[0].files.id)
            elif self._is_full:
                raise no_place(files, self._max_loaded, self._claims())
            else:
                late += await make_way(from_staying, missing_bytes, self._patience_s)
        return tuple(evicted)

    def reserve(self, files: ModelFiles, need: Need) -> Reservation:
        """Return what to set aside for a model whose room was made."""
        return self._ledger.reserve(files, need, self.free_bytes)

    def share_out(self) -> None:
        """Let stored prompts have what is free, those of the model used last first, and requests what is left then.

        All models have an equal part of that; one whose requests hold more than is set aside for it has that, too.
        """
        before = {one: one.reservation for one in self._residents.values()}
        come_back(reversed(before), self._ledger, self.free_bytes)
        takers = [one for one in before if one.files.kind == "chat"]
        part_bytes = max(self.free_bytes, 0) // max(len(takers), 1)
        for one in takers:
            one.share(one.reservation.prefix_cache_bytes, part_bytes)
        for one, reserved in before.items():
            if one.reservation != reserved:
                tell_room(one)

    @property
    def _is_full(self) -> bool:
        return len(self._residents) >= self._max_loaded

    def _missing_bytes(self, need: Need) -> int:
        return max(need.total_bytes - self.free_bytes, 0)

    def _idle_and_staying(self) -> tuple[list[Resident], list[Resident]]:
        """Return the models that may leave, the longest unused first, and those that have to stay."""
        idle, staying = list[Resident](), list[Resident]()
        for one in self._residents.values():
            has_to_stay = one.leases or self._is_pinned(one.files)
            (staying if has_to_stay else idle).append(one)
        return idle, staying

    def _claims(self) -> list[Claim]:
        return [
            Claim(one.files.id, one.committed_bytes, one.leases, self._is_pinned(one.files))
            for one in self._residents.values()
        ]
