"""Bringing weights into memory: how far that is, and an adapter on top of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_model

from mlx_manager.mlx_server.engine.loading import for_this_device, load
from mlx_manager.mlx_server.engine.messages import Loading
from tests.support.adapters import make_fused_model, make_random_adapter
from tools.random_model import Shape, make_random_model

PROMPT = mx.array([list(range(20, 60))])


def test_it_tells_how_far_the_weights_have_come(tmp_path: Path) -> None:
    shape = Shape(hidden=512, intermediate=2048, dtype="bfloat16")
    model: Any
    model, _config = load_model(make_random_model(tmp_path / "model", shape), lazy=True)
    told: list[Loading] = []

    for_this_device(model, told.append, tell_every_s=0)

    shares = [one.share for one in told]
    assert len(shares) >= 2
    assert 0 < shares[0] < shares[-1] == 1.0
    assert shares == sorted(shares)


def test_an_adapter_is_on_the_weights_and_its_training_is_off(tmp_path: Path) -> None:
    base = make_random_model(tmp_path / "base")
    adapter = make_random_adapter(base, "base", tmp_path / "adapter")
    fused = load(make_fused_model(base, tmp_path / "fused")).model(PROMPT)
    plain = load(base).model(PROMPT)

    loaded = load(base, adapter)

    first, second = loaded.model(PROMPT), loaded.model(PROMPT)
    assert loaded.ready.dtype == "float32"
    assert mx.array_equal(first, second), "no dropout"
    assert mx.allclose(first, fused, atol=1e-4)
    assert not mx.allclose(first, plain, atol=0.5)
