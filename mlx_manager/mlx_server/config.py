"""Settings of the inference server, read once in `main` and passed down."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mlx_manager.chat.request import Operation, Priority
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.observability.known_secrets import password_of

# What an API key is known by wherever it must not be shown itself.
KeyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
SHORTEST_KEY = 8
Capture = Literal["off", "hashed", "on"]
HOME = Path("~/.mlx-manager").expanduser()


class Settings(BaseSettings):
    """Every field is the environment variable `MLX_SERVER_` + its name in capitals; `docs/settings.md` lists them."""

    model_config = SettingsConfigDict(
        env_prefix="MLX_SERVER_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Others than the local machine can reach 0.0.0.0.",
    )
    port: int = Field(10242, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    environment: Literal["development", "production"] = Field(
        "development", description="Where this runs; goes into the telemetry resource."
    )
    console: bool = Field(False, description="Print spans to the terminal, readable, as they end.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is printed."
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        description="How log lines look: aligned for people, or one JSON object each; on standard error.",
    )
    trace_sample_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the traces that Logfire and an OTLP collector get, besides all that failed or were slow; "
        "by default what `OTEL_TRACES_SAMPLER` says, or all. What a caller's `traceparent` decides comes first.",
    )
    trace_slow_s: float | None = Field(
        None,
        gt=0,
        description="Seconds beyond which a trace is sent whatever the share; so are, in any case, the slowest "
        "hundredth of each route and what is slower than each of the 100 before it.",
    )
    capture_content: Capture = Field(
        "off",
        description="Whether prompts and answers are recorded on spans, and so reach every sink: not at all, as "
        "hashes with lengths (under a key that is new with each start), or as they are.",
    )
    key_capture_content: Annotated[dict[KeyId, Capture], NoDecode] = Field(
        {},
        description="The same for the requests of single API keys, by the ids of the keys: `laptop=on,agent=off`; a "
        "table in the TOML file.",
    )
    database_url: str = Field(
        f"sqlite+aiosqlite:///{HOME / 'mlx-manager.db'}",
        description="SQLAlchemy URL of the database that holds the audit log, stored responses and changed "
        "settings.",
    )
    model_dirs: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Folders to look for models in, besides the Hugging Face cache, LM Studio's folder and the "
        "built-in one; separated like PATH.",
    )
    hub_cache: Path | None = Field(
        None,
        description="The Hugging Face cache folder; by default where the Hugging Face libraries keep it "
        "(`HF_HUB_CACHE`, `HF_HOME`).",
    )
    lm_studio_dir: Path | None = Field(
        None,
        description="LM Studio's folder of models, those in MLX format of which serve from where they are; by default "
        "where LM Studio says that it is (`~/.lmstudio/models`).",
    )
    adapter_dirs: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Folders to look for LoRA adapters in (mlx-lm's `adapters.safetensors` with "
        "`adapter_config.json`); separated like PATH. A request names one as `model@adapter`.",
    )
    models: Annotated[dict[str, ModelSettings], NoDecode] = Field(
        {},
        description="What holds for single models, by their ids: a JSON object of objects, or tables in the TOML file; "
        "see below.",
    )
    preload: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Ids of models to load at start, separated by commas; the start fails when one does not exist.",
    )
    max_loaded_models: int = Field(
        8,
        ge=1,
        description="Models in memory at once; the one idle longest makes room for another.",
    )
    memory_budget_mib: int | None = Field(
        None,
        ge=1,
        description="MiB that all models in memory may take together, by what they need and what they hold; those idle "
        "longest make room for another. By default three quarters of the memory of the machine, or of the container.",
    )
    idle_unload_s: float | None = Field(
        None,
        gt=0,
        description="Seconds without a request after which a model leaves the memory; by default it stays.",
    )
    max_batch: int = Field(
        32,
        ge=1,
        le=512,
        description="Requests that one model decodes together; more wait their turn.",
    )
    max_waiting: int = Field(
        512, ge=0, description="Requests per model that may wait; beyond it the answer is 503."
    )
    lookup_tokens: int = Field(
        8,
        ge=0,
        le=64,
        description="Tokens that an answer guesses at most before they are computed, where it repeats what stands in "
        "it or its prompt and while no other answer runs; one step computes what follows all of them, and keeps what "
        "was right. The answer stays the same. 0 switches it off.",
    )
    token_gap_ms: float = Field(
        100.0,
        gt=0,
        le=60_000,
        description="Milliseconds between two tokens of a running answer that prompts of others, which are read beside "
        "it, may make of it: a prompt is read in pieces as large as this allows, by what they have cost so far. A "
        "request that has the engine for itself is read in pieces of four times this.",
    )
    prefill_chunk_tokens: int = Field(
        512,
        ge=16,
        description="Prompt tokens computed between two looks at the inbox while other requests decode or wait, at "
        "most; of an embedding model, tokens of one batch, padding counted.",
    )
    idle_prefill_chunk_tokens: int = Field(
        2048, ge=16, description="The same while one request has the engine for itself."
    )
    kv_budget_mib: int | None = Field(
        None,
        ge=1,
        description="MiB per loaded model for keys and values of requests that run. One that doesn't fit beside the "
        "others waits; one that never could is refused. Never more than, and by default, what is set aside for one "
        "request and for stored prompts, which give way, with an equal part of what the memory budget has left.",
    )
    prefix_cache_mib: int = Field(
        1024,
        ge=0,
        description="MiB per loaded model for keys and values of prompts and answers that were read before: a prompt "
        "that begins like one of them is not computed again. 0 switches it off.",
    )
    prefix_disk_mib: int = Field(
        0,
        ge=0,
        description="MiB of all models together for files of the prefix cache, with which conversations go on warm "
        "after a restart. They hold what was said, readable by this user only; what was used longest ago goes first, "
        "whichever model's it is. 0 switches it off.",
    )
    prefix_disk_daily_mib: int = Field(
        16_384,
        ge=1,
        description="MiB of all models that are written to those files in a day, by UTC.",
    )
    prefix_disk_path: Path = Field(
        HOME / "prefix-cache", description="Folder of those files; each model has one in it."
    )
    load_timeout_s: float = Field(600.0, gt=0, description="Seconds that loading a model may take.")
    stall_timeout_s: float = Field(
        120.0,
        gt=0,
        description="Seconds without a sign of life, or in which nothing that it was given gets on, after which an "
        "engine process counts as stalled: health turns 503 and the process is ended.",
    )
    max_resumes: int = Field(
        2,
        ge=0,
        le=10,
        description="How often in a row a request is given to an engine process again when its own has ended, or has "
        "lost its batch, before it is given up: the count begins anew with each token. 0: it fails at once.",
    )
    crash_pause_s: float = Field(
        30.0,
        gt=0,
        description="Seconds that a model is left alone, its requests refused with 503, when five engine processes in "
        "a row ended before they had done any work; twice as long each further time, up to 10 minutes.",
    )
    max_body_bytes: int = Field(
        16 * 2**20,
        ge=1024,
        description="Largest request body that is read; beyond it the answer is 413.",
    )
    chat_timeout_s: float = Field(
        900.0,
        gt=0,
        description="Seconds that a chat completion, a message or a response may take from arrival to last byte; "
        "counting, encoding and decoding tokens, too.",
    )
    completion_timeout_s: float = Field(
        600.0,
        gt=0,
        description="Seconds that a text completion may take from arrival to last byte.",
    )
    embeddings_timeout_s: float = Field(
        120.0,
        gt=0,
        description="Seconds that embeddings may take from arrival to last byte.",
    )
    stream_keep_alive_s: float = Field(
        10.0,
        gt=0,
        description="Seconds of silence after which a stream gets a sign of life, a comment or one of Anthropic's "
        "pings: while a model loads, a request waits for its turn or its prompt is read. The first one takes the "
        "answer's headers along; what goes wrong from then on comes as an event.",
    )
    shutdown_timeout_s: float = Field(
        10.0,
        ge=0,
        description="Seconds that running requests get to finish after SIGTERM before they are ended. The process "
        "itself ends within 5 seconds more, or within 10 by force if it can't, because another has locked its "
        "database, say.",
    )
    audit_retention_days: float = Field(
        30.0, gt=0, description="Days that a row of the audit log is kept."
    )
    responses_retention_days: float = Field(
        30.0,
        gt=0,
        le=36_500,
        description="Days that a response of `/v1/responses` is kept, with its input, unless it was sent with "
        "`store` false.",
    )
    responses_max_bytes: int = Field(
        2**30,
        ge=2**20,
        description="Bytes that stored responses may take in the database; the oldest make room.",
    )
    api_keys: Annotated[
        dict[KeyId, Annotated[SecretStr, Field(min_length=SHORTEST_KEY)]], NoDecode
    ] = Field(
        {},
        description="Keys that may call `/v1`, each with an id that spans and the audit log show: "
        "`laptop=a-long-secret,agent=another-one`; a table in the TOML file. Without any, anybody may call.",
    )
    key_priorities: Annotated[dict[KeyId, Priority], NoDecode] = Field(
        {},
        description="Priority of requests that don't say theirs, by the id of their key: `laptop=high,agent=low`; a "
        "table in the TOML file. Others are `normal`.",
    )
    metrics: bool = Field(
        False,
        description="Offer all metrics to Prometheus at `/metrics`, to readers on this machine.",
    )
    metrics_key: SecretStr | None = Field(
        None,
        min_length=SHORTEST_KEY,
        description="Key with which `/metrics` is read from other machines, sent as a bearer token.",
    )
    admin_key: SecretStr | None = Field(
        None,
        min_length=SHORTEST_KEY,
        description="Key with which other machines may administer (`/admin`), sent as a bearer token; without one only "
        "this machine may.",
    )
    traces: bool = Field(True, description="Keep traces on this machine, to be looked at there.")
    traces_path: Path = Field(
        HOME / "traces.db", description="SQLite file that traces are kept in."
    )
    traces_retention_days: float = Field(
        7.0, gt=0, le=36_500, description="Days that a trace is kept."
    )
    content_retention_days: float = Field(
        1.0,
        gt=0,
        le=36_500,
        description="Days that recorded prompts and answers are kept with their traces on this machine; the traces "
        "themselves stay.",
    )
    traces_max_bytes: int = Field(
        2**30,
        ge=2**20,
        description="Bytes that the file of traces may take; the oldest make room.",
    )
    otlp_key: SecretStr | None = Field(
        None,
        min_length=SHORTEST_KEY,
        description="Key that others send with their spans to `/otlp/v1/traces`; without one only this machine may "
        "send any.",
    )
    blas_library: Path | None = Field(
        None,
        description="Linux on a CPU: BLAS library to preload into engine processes, instead of the OpenBLAS that is "
        "found by itself.",
    )

    @property
    def records_content(self) -> bool:
        """Whether anything that is said is recorded, of whichever key's requests."""
        captures = (self.capture_content, *self.key_capture_content.values())
        return any(capture != "off" for capture in captures)

    @property
    def time_limits_s(self) -> Mapping[Operation, float]:
        """Seconds that a request may take, by what it asks for."""
        return {
            "chat": self.chat_timeout_s,
            "text_completion": self.completion_timeout_s,
            "embeddings": self.embeddings_timeout_s,
        }

    @property
    def time_limits_set(self) -> frozenset[Operation]:
        """Those of the time limits that somebody set."""
        fields: dict[str, Operation] = {
            "chat_timeout_s": "chat",
            "completion_timeout_s": "text_completion",
            "embeddings_timeout_s": "embeddings",
        }
        return frozenset(fields[name] for name in fields.keys() & self.model_fields_set)

    @property
    def secrets(self) -> Iterator[str]:
        """Every key that is set here, and the database's password: what no sink of telemetry may show."""
        yield from (key.get_secret_value() for key in self.api_keys.values())
        for key in (self.metrics_key, self.admin_key, self.otlp_key):
            if key is not None:
                yield key.get_secret_value()
        yield from password_of(self.database_url)

    @field_validator("api_keys", "key_priorities", "key_capture_content", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(sign for _, sign, _ in pairs):
            raise ValueError("each one needs an id and a sign of equality: ID=VALUE")
        keys = {key_id.strip(): key.strip() for key_id, _, key in pairs}
        if len(keys) < len(pairs):
            raise ValueError("an id stands there twice")
        return keys

    @field_validator("api_keys", mode="after")
    @classmethod
    def _tell_keys_apart(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if len(set(value.values())) < len(value):
            raise ValueError("two ids have the same key")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _read_models(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "{}")
        except ValueError as error:
            raise ValueError(
                f'it must be a JSON object, as {{"model": {{...}}}} ({error})'
            ) from None

    @field_validator("models", mode="after")
    @classmethod
    def _tell_names_apart(cls, value: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        names = Counter(alias for own in value.values() for alias in own.aliases)
        for name, count in names.items():
            if count > 1 or name in value:
                raise ValueError(f"the alias {name!r} stands for two models")
        for model_id, own in value.items():
            if "@" in model_id and own.adapter is not None:
                raise ValueError(f"{model_id} names its adapter already; leave out 'adapter'")
        return value

    @field_validator("preload", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        # A list in the configuration file comes joined like PATH.
        names = (name.strip() for name in value.replace(os.pathsep, ",").split(","))
        return tuple(name for name in names if name)

    @field_validator(
        "hub_cache",
        "lm_studio_dir",
        "blas_library",
        "traces_path",
        "prefix_disk_path",
        mode="after",
    )
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else None

    @field_validator("model_dirs", "adapter_dirs", mode="before")
    @classmethod
    def _split_like_path(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(part).expanduser() for part in value.split(os.pathsep) if part)
        return value
