"""Why a model can't be brought into memory, in numbers, and what would help."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlx_manager.errors import InsufficientMemory, Overloaded
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.pool.fit import Need
from mlx_manager.traces.words import bytes_text

RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True)
class Claim:
    """A model in memory, what it has there, and why it stays."""

    model_id: str
    committed_bytes: int
    leases: int
    is_pinned: bool

    @property
    def stays(self) -> bool:
        """Whether it makes no room."""
        return bool(self.leases or self.is_pinned)

    def __str__(self) -> str:
        why = f"in use by {self.leases}" if self.leases else "pinned"
        return f"{self.model_id} ({bytes_text(self.committed_bytes)}, {why})"


def too_large(files: ModelFiles, need: Need, budget_bytes: int) -> InsufficientMemory:
    """Return the error for a model that fits in no case."""
    return InsufficientMemory(
        f"{_needs(files, need)}; all models together may take {bytes_text(budget_bytes)}. "
        f"{_smaller(need, need.total_bytes - budget_bytes)}, or raise MLX_SERVER_MEMORY_BUDGET_MIB.",
        param="model",
    )


def no_room(
    files: ModelFiles, need: Need, free_bytes: int, budget_bytes: int, claims: Iterable[Claim]
) -> InsufficientMemory:
    """Return the error for a model that fits only without models that have to stay."""
    staying = [claim for claim in claims if claim.stays]
    room = budget_bytes - sum(claim.committed_bytes for claim in staying)
    free = f"{bytes_text(max(free_bytes, 0))} of {bytes_text(budget_bytes)}"
    return InsufficientMemory(
        f"{_needs(files, need)}; {free} for all models are free, and "
        f"{', '.join(map(str, staying))} can't be unloaded. Send the request again later, unpin or unload one of them "
        f"(POST /admin/models/unload), or raise MLX_SERVER_MEMORY_BUDGET_MIB. "
        f"{_smaller(need, need.total_bytes - room)}.",
        param="model",
        retry_after_s=RETRY_AFTER_S if any(claim.leases for claim in staying) else None,
    )


def no_place(files: ModelFiles, max_loaded: int, claims: Iterable[Claim]) -> Overloaded:
    """Return the error for a model that would be one too many."""
    names = ", ".join(claim.model_id for claim in claims)
    return Overloaded(
        f"{files.id} can't be loaded: {names} are in memory and in use or pinned, and "
        f"MLX_SERVER_MAX_LOADED_MODELS is {max_loaded}. Send the request again later, or raise it.",
        retry_after_s=RETRY_AFTER_S,
    )


def _needs(files: ModelFiles, need: Need) -> str:
    kv = (
        f"{bytes_text(need.kv_bytes)} of keys and values for {need.context_tokens} tokens, "
        if need.kv_bytes
        else ""
    )
    weights = bytes_text(need.weights_bytes)
    return (
        f"{files.id} does not fit: it needs {bytes_text(need.total_bytes)} ({weights} of weights, "
        f"{kv}{bytes_text(need.head_room_bytes)} of head room)"
    )


def _smaller(need: Need, excess_bytes: int) -> str:
    """Say how it would fit: with a shorter context, where keys and values are what is too much."""
    tokens = need.context_within(need.kv_bytes - excess_bytes)
    if tokens <= 0:
        return "Choose a smaller or more quantised model"
    return f"Set its context_tokens to {tokens} (MLX_SERVER_MODELS), choose a smaller or more quantised model"
