"""Whether a request could ever have the memory that it would take."""

from __future__ import annotations

from mlx_manager.errors import MemoryExceeded
from mlx_manager.mlx_server.engine.messages import Ready, Submit


def check_memory(model_id: str, ready: Ready | None, asked: Submit) -> None:
    """Refuse what would not fit if it had the engine for itself; all else waits its turn there."""
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
            "or raise MLX_SERVER_KV_BUDGET_MIB."
        )
