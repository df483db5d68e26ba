"""Vectors are those of an independent computation, whatever else is in the batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from mlx_manager.mlx_server.engine.embedding_model import EmbeddingModel, load_embedding_model
from mlx_manager.mlx_server.engine.encoder import Encoder, EncoderShape
from tests.support.encoders import HIDDEN, Family, Floats, Kind, expected, make_encoder
from tools.random_model import Shape, make_random_model

# Of very different lengths, with the ids of padding tokens among them, and one as long as the positions reach.
BATCH = [[2, 9, 3], [2, 5, 0, 7, 1, 11, 3], list(range(4, 68)), [8], [2, 9, 3]]


def vectors(model: EmbeddingModel, batch: list[list[int]], size: int | None = None) -> Floats:
    rows = model.embed(batch, [size] * len(batch))
    return np.array([np.frombuffer(row, "<f4") for row in rows], np.float64)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "max"])
@pytest.mark.parametrize("is_normalised", [True, False])
def test_vectors_are_those_of_a_plain_computation(
    tmp_path: Path, family: Family, pooling: str, is_normalised: bool
) -> None:
    kind = Kind(family, pooling, is_normalised)
    folder = make_encoder(tmp_path / "model", kind)

    made = vectors(load_embedding_model(folder), BATCH)

    wanted = np.array([expected(folder, ids, kind) for ids in BATCH])
    assert np.abs(made - wanted).max() < 1e-5
    assert np.abs(made[0] - made[1]).max() > 0.01, "different inputs have different vectors"


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_batch_of_mixed_lengths_equals_one_by_one(tmp_path: Path, family: Family) -> None:
    model = load_embedding_model(make_encoder(tmp_path / "model", Kind(family)))

    together = vectors(model, BATCH)

    alone = np.concatenate([vectors(model, [ids]) for ids in BATCH])
    assert np.abs(together - alone).max() < 1e-5


@pytest.mark.parametrize(
    ("family", "prefix"), [("bert", "bert."), ("roberta", "roberta."), ("modernbert", "model.")]
)
def test_weights_published_below_a_head_are_the_same(
    tmp_path: Path, family: Family, prefix: str
) -> None:
    plain = load_embedding_model(make_encoder(tmp_path / "plain", Kind(family)))
    headed = load_embedding_model(make_encoder(tmp_path / "headed", Kind(family, prefix=prefix)))

    assert (vectors(plain, BATCH) == vectors(headed, BATCH)).all()


def test_fewer_dimensions_are_the_first_ones_at_length_one(tmp_path: Path) -> None:
    model = load_embedding_model(make_encoder(tmp_path / "model"))

    short, whole = vectors(model, BATCH, 5), vectors(model, BATCH)

    assert short.shape == (len(BATCH), 5)
    wanted = whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True)
    assert np.abs(short - wanted).max() < 1e-6


def test_requests_of_one_batch_have_their_own_dimensions(tmp_path: Path) -> None:
    model = load_embedding_model(make_encoder(tmp_path / "model"))

    rows = model.embed([[2, 9, 3]] * 3, [None, 4, HIDDEN])

    assert [len(row) for row in rows] == [4 * HIDDEN, 16, 4 * HIDDEN]
    # Not bit for bit: BLAS shares the rows of a batch out among its threads, and sums in another order at a border.
    first, last = (np.frombuffer(row, np.float32) for row in (rows[0], rows[2]))
    assert np.abs(first - last).max() < 1e-6


def test_without_files_that_say_otherwise_a_vector_is_the_mean_at_its_own_length(
    tmp_path: Path,
) -> None:
    folder = make_encoder(tmp_path / "model")
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")

    made = vectors(load_embedding_model(folder), BATCH)

    wanted = [expected(folder, ids, Kind(is_normalised=False)) for ids in BATCH]
    assert np.abs(made - np.array(wanted)).max() < 1e-5


def _is_quantisable(_name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.weight.shape[1] % 32 == 0


def test_quantised_weights_are_computed_with(tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "model")
    before = vectors(load_embedding_model(folder), BATCH)
    config = json.loads((folder / "config.json").read_text())
    encoder = Encoder(EncoderShape.of(config))
    encoder.load_weights(str(folder / "model.safetensors"), strict=False)
    nn.quantize(encoder, group_size=32, bits=8, class_predicate=_is_quantisable)
    flat: Any = tree_flatten(encoder.parameters())  # type: ignore[no-untyped-call]
    mx.save_safetensors(str(folder / "model.safetensors"), dict(flat))
    config["quantization"] = {"group_size": 32, "bits": 8}
    (folder / "config.json").write_text(json.dumps(config))

    after = vectors(load_embedding_model(folder), BATCH)

    assert np.abs(after - before).max() < 0.02
    assert (after != before).any()


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Dense", "path": "2"}], "Dense"),
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "attention"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "cls_token and pooling_mode_mean",
        ),
        ("1_Pooling/config.json", {"include_prompt": False}, "leaves the prompt out"),
    ],
)
def test_a_step_that_is_not_computed_here_is_refused(
    tmp_path: Path, file: str, content: object, complaint: str
) -> None:
    folder = make_encoder(tmp_path / "model")
    (folder / file).write_text(json.dumps(content))

    with pytest.raises(ValueError, match=complaint):
        load_embedding_model(folder)


@pytest.mark.parametrize(
    "change", [{"position_embedding_type": "relative_key"}, {"hidden_act": "silu"}]
)
def test_an_encoder_that_is_computed_otherwise_is_refused(
    tmp_path: Path, change: dict[str, str]
) -> None:
    folder = make_encoder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))

    with pytest.raises(ValueError, match="not supported"):
        load_embedding_model(folder)


def test_newer_files_of_modernbert_say_the_same_in_other_words(tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "model", Kind("modernbert"))
    older = vectors(load_embedding_model(folder), BATCH)
    config = json.loads((folder / "config.json").read_text())
    thetas = {
        "full_attention": config.pop("global_rope_theta"),
        "sliding_attention": config.pop("local_rope_theta"),
    }
    config["rope_parameters"] = {
        kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()
    }
    del config["global_attn_every_n_layers"]
    config["layer_types"] = list(thetas) * 2
    (folder / "config.json").write_text(json.dumps(config))

    assert (vectors(load_embedding_model(folder), BATCH) == older).all()


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_activation": "silu"},
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}},
    ],
)
def test_a_modernbert_that_is_computed_otherwise_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = make_encoder(tmp_path / "model", Kind("modernbert"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))

    with pytest.raises(ValueError, match="not supported"):
        load_embedding_model(folder)


def make_qwen3(folder: Path, *, is_headless: bool = False) -> Path:
    make_random_model(folder, Shape(context=256))
    steps = ["Transformer", "Pooling", "Normalize"]
    modules = [{"type": f"sentence_transformers.models.{step}", "path": "p"} for step in steps]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "p").mkdir()
    (folder / "p" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    if is_headless:
        file = str(folder / "model.safetensors")
        found: Any = mx.load(file)
        mx.save_safetensors(file, {k.removeprefix("model."): v for k, v in found.items()})
    return folder


@pytest.mark.parametrize("is_headless", [False, True])
def test_a_decoder_s_vector_is_the_last_token_s_whatever_is_padded_behind_it(
    tmp_path: Path, is_headless: bool
) -> None:
    whole, _config = load_model(make_qwen3(tmp_path / "whole"))
    states = [np.array(whole.model(mx.array([ids])))[0, -1].astype(np.float64) for ids in BATCH]
    folder = make_qwen3(tmp_path / "model", is_headless=is_headless)

    made = vectors(load_embedding_model(folder), BATCH)

    wanted = np.array([state / np.linalg.norm(state) for state in states])
    assert np.abs(made - wanted).max() < 1e-5


def test_another_decoder_is_refused(tmp_path: Path) -> None:
    folder = make_qwen3(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gemma3_text"}))

    with pytest.raises(ValueError, match="gemma3_text"):
        load_embedding_model(folder)
