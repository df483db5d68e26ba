"""A model's own settings, templates and end tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_manager.chat.request import Conversation, Message, Sampling
from mlx_manager.errors import InvalidRequest, ModelLoadFailed
from mlx_manager.mlx_server.engine.messages import SamplingParameters
from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text, quantization
from mlx_manager.mlx_server.pool.catalog import ModelFiles


def text_with(
    model_dir: Path, folder: Path, generation: dict[str, Any] | None = None, template: str = ""
) -> ModelText:
    """The text side of the tiny model, with other settings or another template."""
    path = shutil.copytree(model_dir / "test" / "tiny", folder / "model")
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    if template:
        (path / "chat_template.jinja").write_text(template)
    return load_model_text(ModelFiles("test/model", path, "folder", 0))


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, SamplingParameters(1.0, 1.0, 0, 0.0)),
        ({}, SamplingParameters(1.0, 1.0, 0, 0.0)),
        ({"do_sample": False, "temperature": 0.9}, SamplingParameters(0.0, 1.0, 0, 0.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1},
            SamplingParameters(0.6, 0.95, 20, 0.1),
        ),
        ({"temperature": None, "top_k": 50}, SamplingParameters(1.0, 1.0, 50, 0.0)),
    ],
)
def test_what_the_client_leaves_open_is_as_the_model_s_maker_has_it(
    model_dir: Path, tmp_path: Path, generation: dict[str, Any] | None, expected: SamplingParameters
) -> None:
    text = text_with(model_dir, tmp_path, generation)
    assert text.sampling_parameters(Sampling()) == expected
    asked = Sampling(0.0, 0.0, 0, 0.0, 0)
    assert text.sampling_parameters(asked) == SamplingParameters(0.0, 0.0, 0, 0.0, 0)


def test_end_tokens_come_from_every_place_that_names_one(model_dir: Path, tmp_path: Path) -> None:
    text = text_with(model_dir, tmp_path, {"eos_token_id": [0, 2]})
    assert set(text.end_token_ids) == {0, 2}
    assert text.context_tokens == 4096
    assert text.vocabulary_size == 512


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{% if %}", "{{ nothing.at.all }}", "{{ 1 + 'a' }}"]
)
def test_a_template_that_refuses_the_messages_is_an_invalid_request(
    model_dir: Path, tmp_path: Path, template: str
) -> None:
    text = text_with(model_dir, tmp_path, template=template)
    with pytest.raises(InvalidRequest, match="chat template"):
        text.encode(Conversation((Message("user", "Hi"),)))


def test_a_conversation_ends_with_the_assistant_s_turn(model_dir: Path, tmp_path: Path) -> None:
    rendered = text_with(model_dir, tmp_path).render(Conversation((Message("user", "Hi"),)))
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_broken_tokenizer_is_a_failed_load(model_dir: Path, tmp_path: Path) -> None:
    path = shutil.copytree(model_dir / "test" / "tiny", tmp_path / "model")
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadFailed, match="test/model"):
        load_model_text(ModelFiles("test/model", path, "folder", 0))


@pytest.mark.parametrize(
    ("config", "term"),
    [
        ({}, None),
        ({"quantization": None}, None),
        ({"quantization": {"group_size": 64, "bits": 4}}, "4bit"),
        (
            {"quantization": {"group_size": 32, "bits": 8, "mode": "affine", "lm_head": False}},
            "8bit",
        ),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization": {"bits": "many"}}, None),
        ({"quantization": "4bit"}, None),
    ],
)
def test_how_weights_are_stored_is_one_short_term(config: dict[str, Any], term: str | None) -> None:
    assert quantization(config) == term
