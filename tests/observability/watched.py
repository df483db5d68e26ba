"""An application in a process of its own, whose every sink can be read afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Mount, Route

from mlx_manager import app as manager
from mlx_manager.mlx_server import app as server
from tests.observability.conftest import ROOT, TOKEN, clean_environment
from tests.support.collector import Collector, collecting
from tests.support.encoders import make_encoder
from tests.support.process import URL
from tests.support.running import settings_for, wait_until

# The application under test with two routes that fail as nobody expected.
BROKEN = """
from starlette.responses import StreamingResponse
from {main} import app

@app.post("/broken")
async def break_at_once(body: dict):
    raise ValueError(str(body))

@app.post("/broken-later")
async def break_later(body: dict):
    async def pieces():
        yield b"one"
        raise ValueError(str(body))
    return StreamingResponse(pieces())
"""
RUN = """
from mlx_manager.cli import _read, _run
from mlx_manager.mlx_server.config import Settings
_run("broken:app", "It", "127.0.0.1", 0, _read(Settings))
"""
# A stream of events that ends when its reader leaves.
ENDLESS_PATH = "/api/events"
ENCODER = "test/encoder"
MAX_BODY_BYTES = 4096
# Each application once and each format once: one line of `cli` sets the log up for both, and what the server logs the
# manager logs too.
LOG_FORMATS = {"mlx_manager.main": "text", "mlx_manager.mlx_server.main": "json"}


@dataclass
class Application:
    """A running application, all of whose sinks can be read."""

    process: subprocess.Popen[bytes]
    url: str
    output: Path
    home: Path
    collector: Collector

    @property
    def database(self) -> Path:
        return self.home / "audit.db"

    def sinks(self) -> dict[str, bytes]:
        """Every byte that any sink was given."""
        exported = b"".join(body for _, body in self.collector.bodies)
        # Whatever it wrote: it has no other home than this folder.
        files = [file for file in self.home.rglob("*") if file.is_file()]
        return {
            "log and console": self.output.read_bytes(),
            "OTLP and Logfire": exported,
            "database": b"".join(file.read_bytes() for file in files if self._is_database(file)),
            "files": b"".join(
                file.read_bytes()
                for file in files
                if file.suffix not in (".py", ".pyc")
                and file != self.output
                and not self._is_database(file)
            ),
        }

    def _is_database(self, file: Path) -> bool:
        return file.name.startswith(self.database.name)


@contextmanager
def watched(main: str, folder: Path, model_dir: Path, **variables: str) -> Iterator[Application]:
    """Run `main`'s application with all its files in `folder`, until the block ends."""
    (folder / "broken.py").write_text(BROKEN.format(main=main))
    make_encoder(folder / "encoders" / ENCODER)
    output = folder / "output"
    with collecting() as collector, output.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN],
            cwd=folder,
            env=clean_environment(folder)
            | {
                "PYTHONPATH": f"{ROOT}:{folder}",
                "MLX_SERVER_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'audit.db'}",
                "MLX_SERVER_MODEL_DIRS": f"{model_dir}{os.pathsep}{folder / 'encoders'}",
                "MLX_SERVER_HUB_CACHE": str(folder / "hub"),
                "MLX_SERVER_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
                # An engine that is killed fails its requests: their errors are to be searched, too.
                "MLX_SERVER_MAX_RESUMES": "0",
                "MLX_SERVER_LOG_LEVEL": "debug",
                "MLX_SERVER_LOG_FORMAT": LOG_FORMATS[main],
                "MLX_SERVER_CONSOLE": "true",
                "MLX_MANAGER_CONSOLE": "true",
                "LOGFIRE_TOKEN": TOKEN,
                "LOGFIRE_BASE_URL": collector.url,
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            }
            | variables,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(lambda: bool(URL.search(output.read_text())) or process.poll() is not None)
            found = URL.search(output.read_text())
            assert found, output.read_text()
            yield Application(process, found[1], output, folder, collector)
        finally:
            process.terminate()
            process.wait(60)


def routes(main: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Method and path template of every route, with a method that it doesn't take."""
    create = manager.create_app if main == "mlx_manager.main" else server.create_app
    app: FastAPI = create(settings_for(folder, folder))
    for path, methods in walked(app):
        for method in sorted({*methods, "DELETE"} - {"HEAD"}):
            yield method, path


def walked(router: Any) -> Iterator[tuple[str, set[str]]]:
    for route in router.routes:
        if isinstance(route, APIRoute | Route):
            yield route.path, set(route.methods or ())
        elif isinstance(route, Mount):
            yield f"{route.path}/app.css", {"GET"}
        else:
            # A router that was included stands there as a route of FastAPI's own kind.
            yield from walked(route.original_router)
