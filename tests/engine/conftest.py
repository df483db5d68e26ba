"""Models that all tests of the engine share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.models import WatchedModel, make_lively_model


@pytest.fixture(scope="session")
def lively_model() -> Any:
    return make_lively_model()


@pytest.fixture
def model(lively_model: Any) -> WatchedModel:
    """The lively model, watched anew for each test."""
    return WatchedModel(lively_model)
