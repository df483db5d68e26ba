"""How much memory a model will need, told from its files before it is loaded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_manager.mlx_server.engine.kv_groups import quantised_bytes
from mlx_manager.mlx_server.engine.messages import KV_STEP_TOKENS, KvCost
from mlx_manager.mlx_server.pool.adapters import WEIGHTS as ADAPTER_WEIGHTS
from mlx_manager.mlx_server.pool.catalog import ModelFiles

# What a model's context is taken for where nobody set it: published limits of 256k tokens would fill any machine.
PLANNED_TOKENS = 8192
FALLBACK_CONTEXT_TOKENS = 32_768
# The longest piece of a prompt that is read at once, where nobody set it.
CHUNK_TOKENS = 2048
# For the process, intermediate results and freed memory that MLX keeps for the next ones.
LEAST_HEAD_ROOM_BYTES = 256 * 2**20
HEAD_ROOM_SHARE = 0.1
LONGEST_HEADER_BYTES = 100 * 2**20
# Memories of linear attention are float32, whatever the model computes in.
STATE_BYTES = 4
HALVES = frozenset({"BF16", "F16"})

# Types of models whose layers with a sliding window keep only that in mlx-lm, by their `layer_types`. All others keep
# everything, whatever their config says of windows.
WINDOWED = frozenset("afmoe exaone_moe gemma3n_text gpt_oss llama ministral3 olmo3".split())
# Those that tell their layers apart by a pattern, with mlx-lm's own defaults: every how-manieth layer keeps everything.
PATTERNS: Mapping[str, int] = {"gemma3_text": 6, "gemma3": 6, "cohere2": 4, "llama4_text": 4}
# Types with multi-head latent attention for which mlx-lm keeps the latent and not the keys and values.
LATENT = frozenset("deepseek_v3 deepseek_v32 glm4_moe_lite kimi_k2 longcat_flash mistral4".split())
# Every how-manieth layer of these has attention; the others have a state of fixed size.
INTERVALS: Mapping[str, int] = dict.fromkeys(
    "qwen3_next qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text".split(), 4
)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a model will take.

    `kv_bytes` are keys and values of one request of `context_tokens`, whose prompt is read in pieces of up to
    `chunk_tokens`, at `kv_cost`.
    """

    weights_bytes: int = 0
    kv_bytes: int = 0
    head_room_bytes: int = 0
    context_tokens: int = 0
    chunk_tokens: int = 0
    kv_cost: KvCost | None = None

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return self.weights_bytes + self.kv_bytes + self.head_room_bytes

    def at(self, kv_cost: KvCost | None) -> Need:
        """Return it for keys and values that cost so much, unless that isn't known, or no requests are planned for."""
        if kv_cost is None or not self.context_tokens:
            return self
        return replace(self, kv_cost=kv_cost, kv_bytes=self._kv_bytes(kv_cost, self.context_tokens))

    def context_within(self, kv_bytes: int) -> int:
        """Return the longest context whose keys and values take no more, a multiple of the steps that they grow by."""
        longest = self.context_tokens // KV_STEP_TOKENS * KV_STEP_TOKENS
        if self.kv_cost is None:
            share = max(kv_bytes, 0) / self.kv_bytes if self.kv_bytes else 0.0
            return min(longest, int(share * self.context_tokens) // KV_STEP_TOKENS * KV_STEP_TOKENS)
        while longest and self._kv_bytes(self.kv_cost, longest) > kv_bytes:
            longest -= KV_STEP_TOKENS
        return longest

    def _kv_bytes(self, kv_cost: KvCost, tokens: int) -> int:
        return kv_cost.request_bytes(tokens, tokens, self.chunk_tokens)


def predict(files: ModelFiles, *, is_float32: bool, chunk_tokens: int = CHUNK_TOKENS) -> Need:
    """Return what a model will take in memory; with `is_float32` its weights are widened to that, as on a CPU.

    Prompts will be read in pieces of up to `chunk_tokens`. Reads headers and configs: keep it off the event loop.
    """
    config = files.read_json("config.json")
    text = _text_part(config)
    weights = sum(_tensor_bytes(file, is_float32) for file in _weight_files(files.path))
    if files.adapter is not None:
        weights += _tensor_bytes(files.adapter.path / ADAPTER_WEIGHTS, is_float32)
    head_room = max(LEAST_HEAD_ROOM_BYTES, int(weights * HEAD_ROOM_SHARE))
    if files.kind != "chat":
        return Need(weights, 0, head_room)
    tokens = files.settings.context_tokens or min(own_context(config), PLANNED_TOKENS)
    element = 4 if is_float32 else _element_bytes(config, text)
    cost = kv_cost(text, element, files.settings.kv_bits)
    return Need(weights, 0, head_room, tokens, chunk_tokens).at(cost)


def own_context(config: Mapping[str, Any]) -> int:
    """Return the longest context that a model's config allows, in tokens."""
    return _number(_text_part(config), "max_position_embeddings") or FALLBACK_CONTEXT_TOKENS


def kv_cost(text: Mapping[str, Any], element_bytes: int, kv_bits: int | None = None) -> KvCost:
    """Return what a model keeps of a sequence, by the config of its text part: what its engine will measure.

    Layers that aren't known here are taken to keep everything, and states that aren't to take nothing.
    """
    try:
        numbers = _numbers_per_token(text)
        token_bytes = numbers * element_bytes
        if kv_bits is not None:
            token_bytes = quantised_bytes(numbers, _head_width(text), kv_bits, element_bytes)
        layers = Counter(_windows(text))
        everything = layers.pop(None, 0)
        windows = sorted((window, count) for window, count in layers.items() if window is not None)
        return KvCost(
            everything * token_bytes,
            tuple((count * token_bytes, window) for window, count in windows),
            _state_bytes(text, element_bytes),
        )
    except (TypeError, ValueError, ArithmeticError):
        # A config that mlx-lm won't understand either: loading says what is wrong with it.
        return KvCost(0)


def _state_bytes(text: Mapping[str, Any], element_bytes: int) -> int:
    """Return the bytes of the states of all layers with linear attention: of their convolutions and their memories."""
    if str(text.get("model_type")) not in INTERVALS:
        return 0
    layers = (_number(text, "num_hidden_layers") or 0) - len(list(_windows(text)))
    names = ("key_heads", "value_heads")
    key_heads, value_heads = (_number(text, f"linear_num_{name}") or 0 for name in names)
    key, value = (_number(text, f"linear_{name}_head_dim") or 0 for name in ("key", "value"))
    kept = max((_number(text, "linear_conv_kernel_dim") or 1) - 1, 0)
    convolution = kept * (2 * key_heads * key + value_heads * value) * element_bytes
    return layers * (convolution + value_heads * value * key * STATE_BYTES)


def _windows(text: Mapping[str, Any]) -> Iterable[int | None]:
    """Yield the longest that each layer with keys and values keeps, in tokens; None: everything."""
    layers = _number(text, "num_hidden_layers", "n_layers", "n_layer", "num_layers") or 0
    model_type = str(text.get("model_type"))
    # Chunks of attention are kept as windows are.
    window = _number(text, "sliding_window", "attention_chunk_size")
    if (every := PATTERNS.get(model_type)) is not None:
        every = _number(text, "sliding_window_pattern") or every
        return [None if at % every == every - 1 else window for at in range(layers)]
    if (every := INTERVALS.get(model_type)) is not None:
        every = _number(text, "full_attention_interval") or every
        return [None] * sum((at + 1) % every == 0 for at in range(layers))
    kinds = text.get("layer_types") or text.get("layers_block_type")
    if not isinstance(kinds, list):
        return [None] * layers
    keeps_window = model_type in WINDOWED and _number(text, "sliding_window") is not None
    return [
        window if keeps_window and "sliding" in str(kind) else None
        for kind in kinds
        if _has_attention(str(kind))
    ]


def _has_attention(kind: str) -> bool:
    return "attention" in kind and "linear" not in kind


def _numbers_per_token(text: Mapping[str, Any]) -> int:
    """Return how many numbers a layer keeps of each token."""
    heads = _number(text, "num_attention_heads", "n_heads", "n_head") or 1
    latent = _number(text, "kv_lora_rank")
    if latent is not None:
        rope = _number(text, "qk_rope_head_dim") or 0
        if str(text.get("model_type")) in LATENT:
            return latent + rope
        width = (_number(text, "qk_nope_head_dim") or 0) + rope
        return heads * (width + (_number(text, "v_head_dim") or width))
    return 2 * (_number(text, "num_key_value_heads") or heads) * _head_width(text)


def _head_width(text: Mapping[str, Any]) -> int:
    """Return how many numbers a head has, of keys or of values."""
    heads = _number(text, "num_attention_heads", "n_heads", "n_head") or 1
    hidden = _number(text, "hidden_size", "d_model", "n_embd") or 0
    return _number(text, "head_dim") or hidden // heads


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of the names that is a positive whole number."""
    found = (config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the part that reads and writes text, of a model that also sees or hears."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return config
    return {**inner, "model_type": inner.get("model_type") or config.get("model_type")}


def _element_bytes(config: Mapping[str, Any], text: Mapping[str, Any]) -> int:
    """Return the size of a number: keys and values have the type that the model computes in."""
    named = (part.get(name) for part in (text, config) for name in ("dtype", "torch_dtype"))
    return 4 if "float32" in named else 2


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that mlx-lm reads; all there are, of an encoder."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))


def _tensor_bytes(file: Path, is_float32: bool) -> int:
    """Return what a safetensors file takes in memory; of one without a header that can be read, its size."""
    try:
        tensors = _header(file)
        return sum(_widened(tensor, is_float32) for tensor in tensors)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # Damaged: loading says so.
        return file.stat().st_size if file.is_file() else 0


def _header(file: Path) -> list[Mapping[str, Any]]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > LONGEST_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(stream.read(length))
    return [tensor for name, tensor in header.items() if name != "__metadata__"]


def _widened(tensor: Mapping[str, Any], is_float32: bool) -> int:
    begin, end = tensor["data_offsets"]
    size = int(end) - int(begin)
    return 2 * size if is_float32 and tensor["dtype"] in HALVES else size
