"""The text side of a small model with another chat template, and with other special tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text
from mlx_manager.mlx_server.pool.catalog import ModelFiles


def text_with(model_dir: Path, path: Path, template: str, tokens: Sequence[str] = ()) -> ModelText:
    """The tiny model's, copied to `path`."""
    shutil.copytree(model_dir / "test" / "tiny", path)
    (path / "chat_template.jinja").write_text(template)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    added = tokenizer["added_tokens"]
    first = len(tokenizer["model"]["vocab"])
    for token_id, token in enumerate(tokens, start=first):
        added.append({**added[0], "id": token_id, "content": token, "special": True})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return load_model_text(ModelFiles("test/model", path, "folder", 0))
