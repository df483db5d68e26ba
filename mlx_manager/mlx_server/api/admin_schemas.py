"""What `/admin` takes and answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mlx_manager.chat.request import Operation
from mlx_manager.mlx_server.api.cards import CapabilityCard
from mlx_manager.mlx_server.generation.running import Phase
from mlx_manager.mlx_server.pool.catalog import Source
from mlx_manager.mlx_server.pool.kind import ModelKind

PinSource = Literal["settings", "by_hand"]
State = Literal["unloaded", "loading", "ready", "stalled", "dead"]


class ModelName(BaseModel):
    """A model by its id, as `model@adapter`, or by an alias."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1)


class Memory(BaseModel):
    """The budget of all models together. `committed_bytes` are the sum of theirs."""

    budget_bytes: int
    committed_bytes: int
    free_bytes: int


class BatchSpeed(BaseModel):
    """What a model makes when so many `rows` decode together and no prompt is read: measured in the last such steps."""

    rows: int
    step_ms: float
    tokens_per_s: float


class ModelState(BaseModel):
    """A model. What stands below `capability_card` is null or empty unless it is in memory, or on its way.

    What `is_demonstration` is there to show that the server works, and not capable of more.

    Its keys and values have `kv_bits` for each number; null: they are whole.

    The card says what `mlx-manager doctor conformance` found of it; null until its files, as they are, were checked.

    `pin_source` says where `pinned` comes from: what was said `by_hand` holds until the server ends, and the `settings`
    from then on.

    `requests` hold it; without any it has been idle for `idle_s`. While it is loading, `loaded_share` of its weights
    (0 to 1) is there. `reserved_bytes` is set aside for it, by what for (`weights`, `kv`, `prefix_cache`, `head_room`);
    `held_bytes` is what its engine has, by what it is (`weights`, `kv`, `prefix_cache`, `buffers`), as told within the
    last second. `committed_bytes` is the greater of the two, with all head room and all that running requests may take.
    `batch` has each width that its engine has decoded in: where `tokens_per_s` falls, company makes it slower, and a
    lower `MLX_SERVER_MAX_BATCH` makes it faster.
    """

    id: str
    kind: ModelKind
    source: Source
    is_demonstration: bool
    adapter: str | None
    kv_bits: int | None
    aliases: list[str]
    state: State
    pinned: bool
    pin_source: PinSource
    capability_card: CapabilityCard | None
    requests: int = 0
    idle_s: float | None = None
    engine_restarts: int = 0
    loaded_share: float | None = None
    committed_bytes: int = 0
    reserved_bytes: dict[str, int] = {}
    held_bytes: dict[str, int] = {}
    batch: list[BatchSpeed] = []


class ModelsReport(BaseModel):
    """All models, and their memory."""

    memory: Memory
    models: list[ModelState]


class RequestState(BaseModel):
    """A request that is worked on: `id` is its request id, `phase` the name of the span that will tell of it."""

    id: str
    model: str
    operation: Operation
    endpoint: str
    key_id: str | None
    phase: Phase
    running_s: float
    prompt_tokens: int
    output_tokens: int


class RequestsReport(BaseModel):
    """Requests, the oldest first."""

    requests: list[RequestState]
