"""What a model makes, told from its config: answers in text, embeddings, or scores, which nothing here computes yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mlx_manager.mlx_server.engine.messages import EngineKind

ModelKind = EngineKind | Literal["scores"]
# What each kind makes, in the words of errors.
PRODUCTS: Mapping[ModelKind, str] = {
    "chat": "text",
    "embeddings": "embeddings",
    "scores": "scores (it is a reranker or a classifier)",
}
# What the architecture of a reranker or a classifier ends with, an encoder's or a language model's.
SCORING = ("ForSequenceClassification", "ForTokenClassification")

# The bare encoders, and those with the head that they were trained with. With any other head the vectors mean nothing.
ENCODERS = frozenset(
    f"{family}{head}"
    for family in ("Bert", "Roberta", "XLMRoberta", "Camembert", "ModernBert")
    for head in ("Model", "ForMaskedLM")
)
# Language models that make embeddings when sentence-transformers' files stand beside them.
DECODERS = frozenset({"Qwen3ForCausalLM", "Qwen3Model"})


def kind_of(config: Mapping[str, Any], folder: Path) -> ModelKind:
    """Return the kind of the model in `folder`. One that isn't known to make embeddings is taken to make text."""
    architectures = config.get("architectures")
    named = set(map(str, architectures)) if isinstance(architectures, list) else set[str]()
    if any(name.endswith(SCORING) for name in named):
        return "scores"
    if named & ENCODERS:
        return "embeddings"
    if named & DECODERS and (folder / "modules.json").is_file():
        return "embeddings"
    return "chat"
