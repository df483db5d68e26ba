"""Models that engine processes load."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(model_dir: Path) -> Path:
    """The folder of a small model."""
    return model_dir / "test" / "tiny"
