"""Run an application for a test: a real uvicorn on a free port, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
import uvloop
from fastapi import FastAPI

from mlx_manager.mlx_server.config import Settings
from mlx_manager.mlx_server.pool.pool import ModelPool, Resident
from mlx_manager.mlx_server.state import ServerState

START_S = 60.0
T = TypeVar("T")


@dataclass(frozen=True)
class AuditedRequest:
    """What the audit log says of one request; tokens are None when the engine never took it."""

    status: int | None
    outcome: str
    input_tokens: int | None
    output_tokens: int | None
    trace_id: str | None


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

    def audited(self, request_id: str) -> list[AuditedRequest]:
        """The rows that the audit log has of a request that has ended; they are written shortly after that."""
        rows = self._query(
            "SELECT status, outcome, input_tokens, output_tokens, trace_id FROM audit_log"
            " WHERE request_id = ? AND outcome != 'running'",
            request_id,
        )
        return [AuditedRequest(*row) for row in rows]

    def audited_outcomes(self, prefix: str) -> dict[str, list[str]]:
        """The outcomes in the audit log by request id, of those ids that begin with `prefix`."""
        outcomes = defaultdict[str, list[str]](list)
        for request_id, outcome in self._query(
            "SELECT request_id, outcome FROM audit_log WHERE request_id GLOB ?"
            " AND outcome != 'running'",
            f"{prefix}*",
        ):
            outcomes[request_id].append(outcome)
        return outcomes

    def stored_responses(self) -> set[str]:
        """The ids of the responses that are stored."""
        return {found for (found,) in self._query("SELECT id FROM responses WHERE id != ?", "")}

    def _query(self, statement: str, parameter: str) -> list[Any]:
        file = self.state.database.engine.url.database
        assert file is not None
        with closing(sqlite3.connect(file)) as database:
            return database.execute(statement, [parameter]).fetchall()

    async def count_tasks(self) -> int:
        """Tasks of the server's event loop."""

        async def count() -> int:
            return len(asyncio.all_tasks())

        return await self._inside(count())

    async def fill_thread_pool(self) -> None:
        """Have the server's event loop start every thread that it will ever have."""

        async def fill() -> None:
            await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.1) for _ in range(64)))

        await self._inside(fill())

    async def close_books(self) -> None:
        """Write the spans, metrics and rows of all answers that have ended."""
        await self._inside(self._close_books())

    def close_books_at_once(self) -> None:
        """Do the same, and wait for it."""
        asyncio.run_coroutine_threadsafe(self._close_books(), self.loop).result(START_S)

    async def _close_books(self) -> None:
        # An application around ours has no books of its own.
        if hasattr(self.app.state, "server"):
            self.state.afterwards.drain()

    async def _inside(self, work: Coroutine[None, None, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def active(self, model_id: str) -> int:
        """Sequences that the model's engine has been given and that have not ended."""
        engine = self.resident(model_id).engine
        return engine.active_sequences if engine else 0


# Those of this process, as long as they run.
_running = list[RunningServer]()


def settings_for(folder: Path, model_dir: Path, **changes: object) -> Settings:
    """Settings that touch nothing outside `folder`."""
    values: dict[str, object] = {
        "database_url": f"sqlite+aiosqlite:///{folder / 'server.db'}",
        "model_dirs": (model_dir,),
        "traces_path": folder / "traces.db",
        "hub_cache": folder / "hub",
        "lm_studio_dir": folder / "lm-studio",
        "max_loaded_models": 4,
        # A token a step: answers that repeat themselves would be over before a test has looked into their middle.
        "lookup_tokens": 0,
    }
    return Settings.model_validate(values | changes)


@contextmanager
def running(app: FastAPI, *, root_path: str = "") -> Iterator[RunningServer]:
    """Serve `app` until the block ends; its shutdown must end by itself. A proxy serves it under `root_path`.

    Spans go to all servers of a process: those of answers that others have ended by now are none of this one's.
    """
    for other in _running:
        other.close_books_at_once()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5, root_path=root_path)
    server = uvicorn.Server(config)
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
        running_server = RunningServer(url, app, loops[0])
        _running.append(running_server)
        yield running_server
    finally:
        _running[:] = [one for one in _running if one.loop is not loops[0]]
        server.should_exit = True
        thread.join(START_S)
        assert not thread.is_alive(), f"the server did not stop: {asyncio.all_tasks(loops[0])}"


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
