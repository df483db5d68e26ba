"""What can be set for single models, in the environment as JSON and in the file as tables."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from mlx_manager.mlx_server.config import Settings
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.pool.catalog import Catalog


def read(monkeypatch: pytest.MonkeyPatch, models: object) -> dict[str, ModelSettings]:
    text = models if isinstance(models, str) else json.dumps(models)
    monkeypatch.setenv("MLX_SERVER_MODELS", text)
    return Settings().models


def test_they_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, "") == {}
    own = read(monkeypatch, {"a/b": {"aliases": ["x", "y"], "pinned": True}, "c": {}})
    assert own == {"a/b": ModelSettings(aliases=("x", "y"), pinned=True), "c": ModelSettings()}
    assert Catalog({}, (), None, own).real_id("y") == "a/b"


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ("{", "must be a JSON object"),
        ([], "valid dictionary"),
        ({"a": {"contxt": 1}}, "Extra inputs"),
        ({"a": {"context_tokens": 0}}, "greater than or equal to 2"),
        ({"a": {"kv_bits": 5}}, "Input should be 8 or 4"),
        ({"a": {"aliases": ["x"]}, "b": {"aliases": ["x"]}}, "alias 'x' stands for two"),
        ({"a": {"aliases": ["b"]}, "b": {}}, "alias 'b' stands for two"),
        ({"a@lora": {"adapter": "other"}}, "names its adapter already"),
    ],
)
def test_what_can_not_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, models: object, said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        read(monkeypatch, models)


def test_several_models_can_be_loaded_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, names in (("", ()), ("a/b", ("a/b",)), ("a/b, c@d", ("a/b", "c@d"))):
        monkeypatch.setenv("MLX_SERVER_PRELOAD", text)
        assert Settings().preload == names
