"""An upgraded SQLite file for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mlx_manager.database import Database, open_database, upgrade


@pytest.fixture
def database_file(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
async def database(database_file: Path) -> AsyncIterator[Database]:
    # A short patience with locks: some tests hold one for longer.
    database = await open_database(f"sqlite+aiosqlite:///{database_file}", busy_timeout_s=0.05)
    await upgrade(database)
    yield database
    await database.close()
