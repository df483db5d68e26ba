"""Small random encoders in the layout of the Hugging Face hub, and what they must compute, in plain numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

Floats = NDArray[np.float64]
Family = Literal["bert", "roberta", "xlm-roberta", "modernbert"]
ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "modernbert": "ModernBertModel",
}
# Of ModernBERT, how far a token sees in a layer that is local. The first and third of its layers are not.
REACH, MODERN_LAYERS = 4, 4
HIDDEN, INTERMEDIATE, HEADS, LAYERS, POSITIONS = 32, 48, 4, 2, 66
SENTENCES = [
    "the cat sat on the mat",
    "a dog runs in the park",
    "embeddings are vectors of numbers",
    "query: which animal sits on the mat?",
    "one request and many inputs of a different length each",
]


@dataclass(frozen=True)
class Kind:
    """What a model's files say. `prefix` stands before the names of its tensors."""

    family: Family = "bert"
    pooling: str = "mean"
    is_normalised: bool = True
    max_tokens: int | None = None
    prefix: str = ""
    seed: int = 0


def make_encoder(folder: Path, kind: Kind = Kind(), **settings: object) -> Path:
    """Write a model into `folder`; `settings` go into `config_sentence_transformers.json`."""
    folder.mkdir(parents=True)
    tokenizer = _tokenizer(kind.family)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = _config(kind.family, tokenizer.get_vocab_size())
    _write(folder / "config.json", config)
    save_file(_tensors(config, kind), folder / "model.safetensors", metadata={"format": "pt"})
    steps = ["Transformer", "Pooling", *(["Normalize"] if kind.is_normalised else [])]
    names = [("" if step == "Transformer" else f"{n}_{step}") for n, step in enumerate(steps)]
    modules = [
        {"idx": n, "name": str(n), "path": name, "type": f"sentence_transformers.models.{step}"}
        for n, (step, name) in enumerate(zip(steps, names, strict=True))
    ]
    _write(folder / "modules.json", modules)
    modes = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
    pooling = {
        f"pooling_mode_{name}": mode == kind.pooling
        for mode, name in {**modes, "lasttoken": "lasttoken"}.items()
    }
    (folder / "1_Pooling").mkdir()
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN, **pooling})
    if kind.max_tokens is not None:
        _write(folder / "sentence_bert_config.json", {"max_seq_length": kind.max_tokens})
    _write(folder / "config_sentence_transformers.json", settings)
    return folder


def token_ids(folder: Path, text: str) -> list[int]:
    """What the model's tokenizer makes of a text, all of it and no more."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids: list[int] = tokenizer.encode(text).ids
    return ids


def expected(folder: Path, ids: Iterable[int], kind: Kind) -> Floats:
    """The vector of one input, computed in double precision, step by step."""
    tensors = {
        name.removeprefix(kind.prefix): tensor.astype(np.float64)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    config = json.loads((folder / "config.json").read_text())
    compute = _modern_states if config["model_type"] == "modernbert" else _states
    states = compute(tensors, config, list(ids))
    pooled = {
        "mean": states.mean(axis=0),
        "cls": states[0],
        "lasttoken": states[-1],
        "max": states.max(axis=0),
    }
    vector: Floats = pooled[kind.pooling]
    return vector / np.linalg.norm(vector) if kind.is_normalised else vector


def _states(tensors: Mapping[str, Floats], config: Mapping[str, Any], ids: list[int]) -> Floats:
    eps = config["layer_norm_eps"]
    first = 0 if config["model_type"] == "bert" else config["pad_token_id"] + 1
    states = (
        tensors["embeddings.word_embeddings.weight"][ids]
        + tensors["embeddings.position_embeddings.weight"][first : first + len(ids)]
        + tensors["embeddings.token_type_embeddings.weight"][0]
    )
    states = _norm(states, tensors, "embeddings.LayerNorm", eps)
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        seen = _attention(states, tensors, f"{at}.attention.self", config["num_attention_heads"])
        seen = _linear(seen, tensors, f"{at}.attention.output.dense")
        states = _norm(states + seen, tensors, f"{at}.attention.output.LayerNorm", eps)
        wide = _gelu(_linear(states, tensors, f"{at}.intermediate.dense"))
        narrow = _linear(wide, tensors, f"{at}.output.dense")
        states = _norm(states + narrow, tensors, f"{at}.output.LayerNorm", eps)
    return states


def _modern_states(
    tensors: Mapping[str, Floats], config: Mapping[str, Any], ids: list[int]
) -> Floats:
    eps, heads = config["norm_eps"], config["num_attention_heads"]
    states = tensors["embeddings.tok_embeddings.weight"][ids]
    states = _norm(states, tensors, "embeddings.norm", eps)
    for layer in range(config["num_hidden_layers"]):
        at = f"layers.{layer}"
        is_global = layer % config["global_attn_every_n_layers"] == 0
        normed = states if layer == 0 else _norm(states, tensors, f"{at}.attn_norm", eps)
        query, key, value = np.split(_linear(normed, tensors, f"{at}.attn.Wqkv"), 3, axis=1)
        theta = config["global_rope_theta" if is_global else "local_rope_theta"]
        query, key = (_rotated(part, heads, theta) for part in (query, key))
        reach = len(ids) if is_global else config["local_attention"] // 2
        seen = _seen(query, key, value, heads, reach)
        states = states + _linear(seen, tensors, f"{at}.attn.Wo")
        normed = _norm(states, tensors, f"{at}.mlp_norm", eps)
        wide, gate = np.split(_linear(normed, tensors, f"{at}.mlp.Wi"), 2, axis=1)
        states = states + _linear(_gelu(wide) * gate, tensors, f"{at}.mlp.Wo")
    return _norm(states, tensors, "final_norm", eps)


def _rotated(states: Floats, heads: int, theta: float) -> Floats:
    """Each head's pairs of numbers, `i` and `i + half`, turned by position times `theta ** (-i / half)`."""
    rotated, half = states.copy(), states.shape[1] // heads // 2
    for position in range(len(states)):
        for head in range(heads):
            for i in range(half):
                first = head * 2 * half + i
                second, angle = first + half, position * theta ** (-i / half)
                x, y = states[position, first], states[position, second]
                rotated[position, first] = x * math.cos(angle) - y * math.sin(angle)
                rotated[position, second] = y * math.cos(angle) + x * math.sin(angle)
    return rotated


def _attention(states: Floats, tensors: Mapping[str, Floats], at: str, heads: int) -> Floats:
    query, key, value = (
        _linear(states, tensors, f"{at}.{name}") for name in ("query", "key", "value")
    )
    return _seen(query, key, value, heads, len(states))


def _seen(query: Floats, key: Floats, value: Floats, heads: int, reach: int) -> Floats:
    """What each token sees of those at most `reach` away."""
    places, size = np.arange(len(query)), query.shape[1] // heads
    is_far = np.abs(places[:, None] - places[None]) > reach
    parts = []
    for head in range(heads):
        cut = slice(head * size, (head + 1) * size)
        scores = query[:, cut] @ key[:, cut].T / math.sqrt(size)
        scores[is_far] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        parts.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, cut])
    return np.concatenate(parts, axis=1)


def _linear(states: Floats, tensors: Mapping[str, Floats], name: str) -> Floats:
    result: Floats = states @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)
    return result


def _norm(states: Floats, tensors: Mapping[str, Floats], name: str, eps: float) -> Floats:
    centred = states - states.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    result: Floats = scaled * tensors[f"{name}.weight"] + tensors.get(f"{name}.bias", 0.0)
    return result


def _gelu(states: Floats) -> Floats:
    erf = np.vectorize(math.erf)
    result: Floats = states * (1 + erf(states / math.sqrt(2))) / 2
    return result


def _config(family: Family, vocabulary: int) -> dict[str, Any]:
    if family == "modernbert":
        return _modern_config(vocabulary)
    is_bert = family == "bert"
    return {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "vocab_size": vocabulary,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2 if is_bert else 1,
        "layer_norm_eps": 1e-12 if is_bert else 1e-5,
        "hidden_act": "gelu",
        "pad_token_id": 0 if is_bert else 1,
    }


def _modern_config(vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "modernbert",
        "architectures": [ARCHITECTURES["modernbert"]],
        "hidden_size": HIDDEN,
        "num_hidden_layers": MODERN_LAYERS,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "vocab_size": vocabulary,
        "max_position_embeddings": POSITIONS,
        "norm_eps": 1e-5,
        "hidden_activation": "gelu",
        "global_attn_every_n_layers": 2,
        "local_attention": 2 * REACH,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 100.0,
        "pad_token_id": 0,
    }


def _tensors(config: Mapping[str, Any], kind: Kind) -> dict[str, NDArray[np.float32]]:
    """Weights large enough that attention prefers some tokens to others, and norms that do something."""
    random = np.random.default_rng(kind.seed)
    is_modern = config["model_type"] == "modernbert"
    shapes = _modern_shapes(config) if is_modern else _shapes(config)
    made = {
        f"{kind.prefix}{name}": (random.normal(size=shape) * 0.4).astype(np.float32)
        for name, shape in shapes.items()
    }
    if is_modern:
        # The head that its training had.
        return {**made, "head.dense.weight": np.zeros((HIDDEN, HIDDEN), np.float32)}
    # What published files have besides: a buffer, and the pooler of the training.
    ids = np.arange(POSITIONS, dtype=np.float32)[None]
    return {
        **made,
        f"{kind.prefix}embeddings.position_ids": ids,
        f"{kind.prefix}pooler.dense.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
    }


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], HIDDEN),
        **_named("embeddings.LayerNorm", (HIDDEN,)),
    }
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            shapes |= _named(f"{at}.attention.self.{name}", (HIDDEN, HIDDEN))
        shapes |= _named(f"{at}.attention.output.dense", (HIDDEN, HIDDEN))
        shapes |= _named(f"{at}.attention.output.LayerNorm", (HIDDEN,))
        shapes |= _named(f"{at}.intermediate.dense", (INTERMEDIATE, HIDDEN))
        shapes |= _named(f"{at}.output.dense", (HIDDEN, INTERMEDIATE))
        shapes |= _named(f"{at}.output.LayerNorm", (HIDDEN,))
    return shapes


def _modern_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Without biases, as published; the first layer has no norm before its attention."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.tok_embeddings.weight": (config["vocab_size"], HIDDEN),
        "embeddings.norm.weight": (HIDDEN,),
        "final_norm.weight": (HIDDEN,),
    }
    for layer in range(MODERN_LAYERS):
        at = f"layers.{layer}"
        if layer > 0:
            shapes[f"{at}.attn_norm.weight"] = (HIDDEN,)
        shapes |= {
            f"{at}.attn.Wqkv.weight": (3 * HIDDEN, HIDDEN),
            f"{at}.attn.Wo.weight": (HIDDEN, HIDDEN),
            f"{at}.mlp_norm.weight": (HIDDEN,),
            f"{at}.mlp.Wi.weight": (2 * INTERMEDIATE, HIDDEN),
            f"{at}.mlp.Wo.weight": (HIDDEN, INTERMEDIATE),
        }
    return shapes


def _named(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _tokenizer(family: Family) -> Tokenizer:
    """WordPiece with `[CLS]` and `[SEP]`, or byte-level BPE with `<s>` and `</s>`, learned from the sentences above."""
    trainer: Any
    if family in ("bert", "modernbert"):
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        trainer = trainers.WordPieceTrainer(
            vocab_size=200, special_tokens=special, show_progress=False
        )
        begin, end = "[CLS]", "[SEP]"
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        begin, end = "<s>", "</s>"
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (begin, end)],
    )
    # As published ones are: what they'd cut off or fill up is for the server to decide.
    tokenizer.enable_truncation(max_length=16)
    tokenizer.enable_padding(length=16)
    return tokenizer


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))
