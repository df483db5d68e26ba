"""Whether a request could ever have the memory that it would take."""

from __future__ import annotations

from mlx_manager.errors import MemoryExceeded
from mlx_manager.mlx_server.engine.messages import Ready, Submit


def check_memory(
    model_id: str, ready: Ready | None, asked: Submit, set_bytes: int | None = None
) -> None:
    """Refuse what would not fit if it had the engine for itself; all else waits its turn there.

    `set_bytes` is what the settings leave to requests at most; what other models leave may be less. The message says
    which of them it is. Raises MemoryExceeded.
    """
    if ready is None or ready.kv_cost is None or ready.kv_budget_bytes is None:
        return
    prompt_tokens, answer_tokens = len(asked.token_ids), asked.answer_tokens
    needed_bytes = ready.kv_cost.request_bytes(
        prompt_tokens, prompt_tokens + answer_tokens, ready.chunk_tokens
    )
    if needed_bytes > ready.kv_budget_bytes:
        raise MemoryExceeded(
            f"A prompt of {prompt_tokens} tokens with an answer of up to {answer_tokens} needs "
            f"{needed_bytes / 2**20:.1f} MiB for keys and values; {model_id} has "
            f"{ready.kv_budget_bytes / 2**20:.1f} MiB for them. Shorten the prompt, ask for a shorter answer, "
            f"or {_remedy(ready.kv_budget_bytes, set_bytes)}."
        )


def _remedy(budget_bytes: int, set_bytes: int | None) -> str:
    """Return what would make the budget larger: there is no use in raising a limit that isn't the one met."""
    if set_bytes is not None and set_bytes <= budget_bytes:
        return "raise MLX_SERVER_KV_BUDGET_MIB"
    return (
        "unload other models (POST /admin/models/unload) if there are any in memory, or raise "
        "MLX_SERVER_MEMORY_BUDGET_MIB"
    )
