"""How engine processes are run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PrefixDiskOptions:
    """Where the prefix cache's files are, each model's in a folder of its own, and how many bytes all may have."""

    folder: Path
    max_bytes: int
    max_daily_bytes: int

    def folder_of(self, model_id: str) -> Path:
        """Return the folder of a model's files."""
        return self.folder / re.sub(r"[^A-Za-z0-9._-]+", "--", model_id).lstrip(".")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How engine processes are run; see the settings of the same names. `adapter` is the folder of a LoRA adapter;
    keys and values have `kv_bits` for each number, None: they are whole.

    `shared_bytes` are for keys and values and for stored prompts together; None: what the machine's memory allows. Of
    them `prefix_cache_bytes` are for stored prompts, which may become more; None: no prompts are stored. MLX keeps
    up to `pooled_bytes` of freed buffers for the next ones; None: as many as it likes.
    """

    max_batch: int = 32
    max_waiting: int = 512
    prefill_chunk_tokens: int = 512
    idle_prefill_chunk_tokens: int = 2048
    prefix_cache_bytes: int | None = None
    prefix_disk: PrefixDiskOptions | None = None
    lookup_tokens: int = 0
    token_gap_ms: float = 100.0
    kv_budget_bytes: int | None = None
    shared_bytes: int | None = None
    pooled_bytes: int | None = None
    load_timeout_s: float = 600.0
    stall_timeout_s: float = 120.0
    blas_library: Path | None = None
    adapter: Path | None = None
    kv_bits: int | None = None

    @property
    def chunk_tokens(self) -> int:
        """The most tokens of a prompt that are read at once."""
        return max(self.prefill_chunk_tokens, self.idle_prefill_chunk_tokens)

    def words(self, model_id: str) -> list[str]:
        """Return what the command line of a model's worker says of them."""
        disk = self.prefix_disk
        given = {
            "--adapter": self.adapter,
            "--kv-bits": self.kv_bits,
            "--max-batch": self.max_batch,
            "--chunk": self.prefill_chunk_tokens,
            "--idle-chunk": self.idle_prefill_chunk_tokens,
            "--prefix-cache-bytes": self.prefix_cache_bytes,
            "--prefix-disk": disk and disk.folder_of(model_id),
            "--prefix-disk-bytes": disk and f"{disk.max_bytes},{disk.max_daily_bytes}",
            "--lookup-tokens": self.lookup_tokens,
            "--token-gap-ms": self.token_gap_ms,
            "--kv-budget-bytes": self.kv_budget_bytes,
            "--shared-bytes": self.shared_bytes,
            "--pooled-bytes": self.pooled_bytes,
        }
        return [
            word
            for name, value in given.items()
            if value is not None
            for word in (name, str(value))
        ]
