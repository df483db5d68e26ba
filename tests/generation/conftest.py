"""A backend over real engine processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from mlx_manager.mlx_server.generation.local import LocalBackend
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.mlx_server.pool.pool import ModelPool
from mlx_manager.mlx_server.workers.process import EngineOptions, EngineProcess


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(model_dir: Path) -> AsyncIterator[ModelPool]:
    async def start(files: ModelFiles) -> EngineProcess:
        return await EngineProcess.start(files.id, files.path, EngineOptions(max_batch=4))

    pool = ModelPool(Catalog({}, [model_dir], None), start, max_loaded=2)
    yield pool
    await pool.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(pool: ModelPool) -> LocalBackend:
    return LocalBackend(pool, {"chat": 600.0, "text_completion": 600.0})
