"""What a model can do is told from its files, wherever its makers have put its template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_manager.chat.abilities import Abilities
from mlx_manager.mlx_server.generation.abilities import told_abilities
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.pool.kind import ModelKind
from tests.support.encoders import Kind, make_encoder

PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
THINKS = PLAIN + "{# <think> #}</think>"
LEVELS = THINKS + "{{ reasoning_effort }}"
CONFIG = {"model_type": "llama", "max_position_embeddings": 4096}


def files_of(
    folder: Path, files: dict[str, Any], kind: ModelKind = "chat", **settings: Any
) -> ModelFiles:
    for name, content in {"config.json": CONFIG, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    return ModelFiles("a/b", folder, "folder", 0, kind, settings=ModelSettings(**settings))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Abilities(4096)),
        ({"chat_template.jinja": PLAIN}, Abilities(4096)),
        ({"chat_template.jinja": THINKS}, Abilities(4096, thinks=True)),
        ({"chat_template.json": {"chat_template": THINKS}}, Abilities(4096, thinks=True)),
        (
            {"tokenizer_config.json": {"chat_template": LEVELS}},
            Abilities(4096, thinks=True, reads_effort=True),
        ),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "default", "template": PLAIN},
                        {"name": "thinking", "template": LEVELS},
                    ]
                }
            },
            Abilities(4096, thinks=True, reads_effort=True),
        ),
        ({"chat_template.jinja": PLAIN + "<|channel|><|call|>"}, Abilities(4096, thinks=True)),
        # What can't be read says nothing, and the list of models is there all the same.
        ({"tokenizer_config.json": "{"}, Abilities(4096)),
        ({"tokenizer_config.json": {"chat_template": [5]}}, Abilities(4096)),
        ({"config.json": "{"}, Abilities(None)),
        ({"chat_template.jinja": LEVELS + "{% for %}"}, Abilities(4096, thinks=True, reads_effort=True)),
    ],
)  # fmt: skip
def test_a_model_s_files_say_what_it_can_do(
    tmp_path: Path, files: dict[str, Any], expected: Abilities
) -> None:
    assert told_abilities(files_of(tmp_path, files)) == expected


def test_what_was_set_for_a_model_wins(tmp_path: Path) -> None:
    files = files_of(tmp_path, {}, context_tokens=512, family="gpt-oss")
    assert told_abilities(files) == Abilities(512, thinks=True)


def test_a_family_that_there_is_none_of_hides_no_model(tmp_path: Path) -> None:
    files = files_of(tmp_path, {"chat_template.jinja": THINKS}, family="nobody")
    assert told_abilities(files) == Abilities(4096, thinks=True)


def test_a_model_that_makes_vectors_says_how_long_an_input_may_be(tmp_path: Path) -> None:
    path = make_encoder(tmp_path / "encoder", Kind(max_tokens=32))
    files = ModelFiles("a/vectors", path, "folder", 0, "embeddings")
    assert told_abilities(files) == Abilities(32, makes_text=False)
