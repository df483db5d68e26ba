"""Build the starter model: tokenizer, training, and the folder that `mlx_lm.load` reads."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.qwen3 import Model
from transformers import PreTrainedTokenizerFast

from tools.starter.batches import BATCH_TOKENS, batched
from tools.starter.corpus import later_samples, samples
from tools.starter.shape import VOCAB_SIZE, config, new_model
from tools.starter.tokenizer import train_tokenizer
from tools.starter.train import Progress, train

SEED = 20261123
STEPS = 12_500
REFRESH_STEPS = 800
REFRESH_RATE = 3e-4
TOKENIZER_SAMPLES = 20_000


def build(
    folder: Path, *, steps: int = STEPS, minutes: float | None = None,
    vocab_size: int = VOCAB_SIZE, seed: int = SEED, batch_tokens: int = BATCH_TOKENS,
) -> Progress:  # fmt: skip
    """Train a starter model and save it in `folder`."""
    mx.set_default_device(mx.cpu)
    mx.random.seed(seed)
    texts = (
        s.prompt() + s.completion() for s in islice(later_samples(seed + 1), TOKENIZER_SAMPLES)
    )
    tokenizer = train_tokenizer(texts, vocab_size)
    settings = config(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    model = new_model(settings)
    batches = batched(samples(seed), tokenizer, batch_tokens)
    progress = train(model, batches, steps=steps, minutes=minutes)
    save(folder, model, settings, tokenizer)
    return progress


def refresh(
    folder: Path, trained: Path, *, steps: int = REFRESH_STEPS, minutes: float | None = None, seed: int,
) -> Progress:  # fmt: skip
    """Go on training the model in `trained`, gently, after what is taught has changed, and save it in `folder`."""
    mx.set_default_device(mx.cpu)
    mx.random.seed(seed)
    settings = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    model = new_model(settings)
    model.load_weights(str(trained / "model.safetensors"))
    model.set_dtype(mx.float32)
    # Here and now: the threads that train can't compute what this one has only promised.
    mx.eval(model.parameters())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained, local_files_only=True)
    batches = batched(later_samples(seed), tokenizer)
    progress = train(model, batches, steps=steps, minutes=minutes, peak_rate=REFRESH_RATE)
    save(folder, model, settings, tokenizer)
    return progress


def save(
    folder: Path, model: Model, settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:  # fmt: skip
    """Write weights, settings and tokenizer the way `mlx_lm.load` expects them."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters: Any = tree_flatten(model.parameters())
    weights = {name: weight.astype(mx.bfloat16) for name, weight in parameters}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write_json(folder / "config.json", settings)
    generation = {
        "eos_token_id": settings["eos_token_id"],
        "pad_token_id": settings["pad_token_id"],
    }
    _write_json(folder / "generation_config.json", {**generation, "do_sample": False})
    tokenizer.save_pretrained(str(folder))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
