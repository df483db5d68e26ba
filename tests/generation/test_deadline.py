"""A request's time runs from its arrival, whatever it spends it on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mlx_manager.chat.events import collect
from mlx_manager.chat.request import ChatRequest, Origin, RawPrompt
from mlx_manager.errors import RequestCancelled, RequestTimeout
from mlx_manager.mlx_server.generation.deadline import Deadline
from mlx_manager.mlx_server.generation.local import LocalBackend
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.mlx_server.pool.pool import ModelPool
from mlx_manager.mlx_server.workers.process import EngineProcess


async def test_a_model_that_takes_too_long_to_load_is_a_timeout(model_dir: Path) -> None:
    async def never(files: ModelFiles) -> EngineProcess:
        await asyncio.sleep(3600)
        raise AssertionError

    pool = ModelPool(Catalog({}, [model_dir], None), never, 1)
    backend = LocalBackend(pool, {"chat": 600.0, "text_completion": 0.2})
    request = ChatRequest("test/tiny", RawPrompt("x"), Origin("1", "/"))
    with pytest.raises(RequestTimeout, match=r"longer than 0\.2 s"):
        await collect(backend.stream(request))
    assert [resident.leases for resident in pool.residents] == [0]
    assert [resident.state for resident in pool.residents] == ["loading"], "the load goes on"
    await pool.close()


async def test_a_timeout_of_something_else_stays_what_it_is() -> None:
    with pytest.raises(TimeoutError, match="not ours"):
        async with Deadline(3600).kept():
            raise TimeoutError("not ours")


async def test_a_time_that_is_brought_forward_ends_what_waits_with_its_own_error() -> None:
    deadline = Deadline(3600)
    asyncio.get_running_loop().call_later(0.02, deadline.bring_forward, RequestCancelled("enough"))
    with pytest.raises(RequestCancelled, match="enough"):
        async with deadline.kept():
            await asyncio.sleep(3600)
    deadline.bring_forward(RequestCancelled("too late"))
