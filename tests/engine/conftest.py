"""Models that all tests of the engine share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.models import MODEL_KINDS, WatchedModel, make_lively_model


@pytest.fixture(scope="session")
def lively_model() -> Any:
    return make_lively_model()


@pytest.fixture
def model(lively_model: Any) -> WatchedModel:
    """The lively model, watched anew for each test."""
    return WatchedModel(lively_model)


@pytest.fixture(scope="session")
def models() -> dict[str, Any]:
    """One model for each kind of state that a layer can leave."""
    return {kind: make() for kind, make in MODEL_KINDS.items()}


@pytest.fixture(params=[kind for kind in MODEL_KINDS if kind != "chunked"])
def any_batched(request: pytest.FixtureRequest, models: dict[str, Any]) -> WatchedModel:
    """Each of those in turn whose rows can share a batch."""
    return WatchedModel(models[request.param])


@pytest.fixture(params=MODEL_KINDS)
def any_model(request: pytest.FixtureRequest, models: dict[str, Any]) -> WatchedModel:
    """Each of them in turn, watched anew."""
    return WatchedModel(models[request.param])
