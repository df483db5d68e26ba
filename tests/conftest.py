"""What all tests share: models made on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.random_model import Shape, make_random_model

TINY = "test/tiny"
# More than a fast machine writes while a slow test looks; only a greedy answer (temperature 0) surely has so many.
ENDLESS_TOKENS = 100_000


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small random models: one for chats, and one that has no chat template."""
    folder = tmp_path_factory.mktemp("models")
    roomy = Shape(context=131_072)  # for endless answers
    make_random_model(folder / "test" / "tiny", roomy)
    make_random_model(folder / "test" / "plain", Shape(seed=1), has_template=False)
    make_random_model(folder / "test" / "short", Shape(context=64))
    make_random_model(
        folder / "test" / "late", roomy
    )  # for tests that need one nobody has asked for yet
    return folder
