"""The shipped starter model, loaded once."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load

STARTER = Path(__file__).parents[2] / "mlx_manager" / "starter"


@pytest.fixture(scope="session")
def starter_folder() -> Path:
    return STARTER


@pytest.fixture(scope="session")
def starter() -> tuple[Any, Any]:
    """The model and its tokenizer, as stock mlx-lm loads them."""
    mx.set_default_device(mx.cpu)
    model, tokenizer = load(str(STARTER))[:2]
    model.set_dtype(mx.float32)
    return model, tokenizer
