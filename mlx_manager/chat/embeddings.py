"""Embeddings asked for, and those that come back, in words that belong to no API."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from mlx_manager.chat.events import Timeline, TraceContext
from mlx_manager.chat.request import Operation, Origin


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A vector asked for each of `inputs`: texts, or token ids as the client encoded them; at least one, none empty.

    Of each vector the first `dimensions` numbers are wanted, None for all. `prompt_name` is one of the prompts that the
    model's makers wrote to stand before texts (`query`, `document`), None for the one that they have as default, if
    any. `encoding_format` is how the client wants numbers written, where it said so. `timeline` and `trace` are those
    of `ChatRequest`.
    """

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    origin: Origin
    dimensions: int | None = None
    prompt_name: str | None = None
    encoding_format: str | None = None
    timeline: Timeline = field(default_factory=Timeline, compare=False, repr=False)
    trace: TraceContext | None = field(default=None, compare=False, repr=False)

    @property
    def operation(self) -> Operation:
        """The operation in the words of the OpenTelemetry GenAI conventions."""
        return "embeddings"

    @property
    def size(self) -> int:
        """Characters and token ids of all inputs."""
        return sum(map(len, self.inputs))


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors by the model `model`, one for each input, in their order and in 32-bit floats.

    `input_tokens` are those that were computed, special tokens and prompts included, padding not.
    """

    model: str
    vectors: tuple[array[float], ...]
    input_tokens: int

    @property
    def dimensions(self) -> int:
        """Numbers of each vector."""
        return len(self.vectors[0])
