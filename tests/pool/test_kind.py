"""What a model makes, told from its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_manager.mlx_server.pool.catalog import Catalog


def kind(folder: Path, config: object, *files: str) -> str:
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", *files):
        (model / name).touch()
    [found] = Catalog({}, [folder], None).list()
    return found.kind


@pytest.mark.parametrize(
    ("architecture", "files", "wanted"),
    [
        ("BertModel", (), "embeddings"),
        ("BertForMaskedLM", (), "embeddings"),
        ("RobertaModel", (), "embeddings"),
        ("XLMRobertaModel", (), "embeddings"),
        ("CamembertModel", (), "embeddings"),
        ("Qwen3ForCausalLM", ("modules.json",), "embeddings"),
        ("Qwen3ForCausalLM", (), "chat"),
        ("LlamaForCausalLM", ("modules.json",), "chat"),
        ("ModernBertModel", (), "embeddings"),
        ("ModernBertForMaskedLM", (), "embeddings"),
        # A reranker's: what is left of it without its head says nothing about a text.
        ("XLMRobertaForSequenceClassification", (), "scores"),
        ("ModernBertForSequenceClassification", (), "scores"),
        ("Qwen3ForSequenceClassification", ("modules.json",), "scores"),
        ("BertForTokenClassification", (), "scores"),
    ],
)
def test_the_architecture_says_what_a_model_makes(
    tmp_path: Path, architecture: str, files: tuple[str, ...], wanted: str
) -> None:
    assert kind(tmp_path, {"model_type": "x", "architectures": [architecture]}, *files) == wanted


@pytest.mark.parametrize("odd", [None, 5, "BertModel", [], [None, {}], {"a": 1}])
def test_odd_architectures_are_no_encoder_and_no_failure(tmp_path: Path, odd: object) -> None:
    assert kind(tmp_path, {"model_type": "bert", "architectures": odd}) == "chat"
