"""Run an application for a test: a real uvicorn on a free port, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
import uvloop
from fastapi import FastAPI

from mlx_manager.mlx_server.config import Settings
from mlx_manager.mlx_server.pool.pool import ModelPool, Resident
from mlx_manager.mlx_server.state import ServerState

START_S = 60.0


@dataclass(frozen=True)
class RunningServer:
    """A server that answers at `url`; `state` is read by tests, never written."""

    url: str
    app: FastAPI
    loop: asyncio.AbstractEventLoop

    @property
    def state(self) -> ServerState:
        state: ServerState = self.app.state.server
        return state

    @property
    def pool(self) -> ModelPool:
        return self.state.pool

    def resident(self, model_id: str) -> Resident:
        return next(one for one in self.pool.residents if one.files.id == model_id)

    async def count_tasks(self) -> int:
        """Tasks of the server's event loop."""

        async def count() -> int:
            return len(asyncio.all_tasks())

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(count(), self.loop))

    def active(self, model_id: str) -> int:
        """Sequences that the model's engine has been given and that have not ended."""
        engine = self.resident(model_id).engine
        return engine.active_sequences if engine else 0


def settings_for(folder: Path, model_dir: Path, **changes: object) -> Settings:
    """Settings that touch nothing outside `folder`."""
    values: dict[str, object] = {
        "database_url": f"sqlite+aiosqlite:///{folder / 'server.db'}",
        "model_dirs": (model_dir,),
        "hub_cache": folder / "hub",
        "max_loaded_models": 4,
    }
    return Settings.model_validate(values | changes)


@contextmanager
def running(app: FastAPI) -> Iterator[RunningServer]:
    """Serve `app` until the block ends; its shutdown must end by itself."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve([listener])

    thread = threading.Thread(target=uvloop.run, args=[serve()], daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive(), START_S)
    assert server.started, "the server did not start"
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield RunningServer(url, app, loops[0])
    finally:
        server.should_exit = True
        thread.join(START_S)
        assert not thread.is_alive(), "the server did not stop"


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait for something that happens in another thread or process. Fails the test when it doesn't."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s"
        time.sleep(0.01)


async def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Do the same without holding up the event loop."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s"
        await asyncio.sleep(0.01)
