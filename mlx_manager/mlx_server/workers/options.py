"""How engine processes are run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_manager.mlx_server.workers.kept import PrefixDiskOptions


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How engine processes are run; see the settings of the same names. `adapter` is the folder of a LoRA adapter."""

    max_batch: int = 32
    max_waiting: int = 512
    prefill_chunk_tokens: int = 512
    idle_prefill_chunk_tokens: int = 2048
    prefix_cache_bytes: int = 0
    prefix_disk: PrefixDiskOptions | None = None
    token_gap_ms: float = 100.0
    kv_budget_bytes: int | None = None
    load_timeout_s: float = 600.0
    stall_timeout_s: float = 120.0
    blas_library: Path | None = None
    adapter: Path | None = None
