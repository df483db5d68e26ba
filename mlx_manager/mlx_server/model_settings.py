"""What can be set for one model by itself: its table in the settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Alias = Annotated[str, Field(min_length=1, max_length=200)]


class ModelSettings(BaseModel):
    """What holds for one model instead of what holds for all, or what its files say; `docs/settings.md` lists it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aliases: tuple[Alias, ...] = Field(
        (), description="Other names that requests may ask for it by; they are listed, too."
    )
    context_tokens: int | None = Field(
        None,
        ge=2,
        description="Longest prompt with its answer, in tokens; at most the model's own, which is the default. Memory "
        "for the whole of it is set aside when it is set.",
    )
    adapter: str | None = Field(
        None,
        min_length=1,
        description="Name of the LoRA adapter that it has unless a request names another one as `model@adapter`.",
    )
    family: str | None = Field(
        None,
        description="By whose marks its calls and thoughts are read, instead of what its chat template says: a name "
        "that `mlx.parse.family` can have, as `hermes`.",
    )
    prefix_cache_mib: int | None = Field(
        None, ge=0, description="`MLX_SERVER_PREFIX_CACHE_MIB` of this model."
    )
    canonical_prompts: bool = Field(
        False,
        description="Lines of the instructions that say what day or time it is, or what to bill by "
        "(`x-anthropic-billing-header: …`), go to their end, and tools are sorted "
        "by name: a prompt that differs in nothing else is not computed again from there. Nothing is left out; what "
        "had another order is told in `X-Adjusted-Parameters` and on the chat's span.",
    )
    kv_bits: Literal[8, 4] | None = Field(
        None,
        description="Bits of each number in keys and values: 8 or 4. Left out they are whole. Their memory is a "
        "half or a quarter then, of float32 (on a CPU) a third or a sixth; a CPU takes longer for each token of an "
        "answer, and answers are no longer quite those of whole ones. Not for models with windows or recurrent states.",
    )
    idle_unload_s: float | None = Field(
        None, gt=0, description="`MLX_SERVER_IDLE_UNLOAD_S` of this model."
    )
    pinned: bool = Field(
        False,
        description="Once it is in memory it stays: neither room for others nor idling ends it.",
    )
