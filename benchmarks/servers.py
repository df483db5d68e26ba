"""Start the servers that are compared, as their users do, and read what they cost."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlx_manager.mlx_server.workers.blas import engine_environment, find_openblas
from tools.resident import resident_bytes

HOST = "127.0.0.1"
START_S = 120.0
STOP_S = 20.0
POLL_S = 0.1
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


class ServerFailed(RuntimeError):
    """A server did not start; the message has its last words."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds used so far by a server's first process (`api`) and by all its children (`engine`)."""

    api_s: float
    engine_s: float

    def since(self, earlier: Cpu) -> Cpu:
        """Return what was used between two readings."""
        return Cpu(self.api_s - earlier.api_s, self.engine_s - earlier.engine_s)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and the name that it knows its model by."""

    port: int
    model_id: str
    process: psutil.Process

    def cpu(self) -> Cpu:
        """Return the CPU time used so far."""
        children = self.process.children(recursive=True)
        return Cpu(_cpu_s(self.process), sum(map(_cpu_s, children)))

    def rss_bytes(self) -> int:
        """Return the resident memory of the first process alone: the one that talks HTTP."""
        return resident_bytes([self.process])

    def engine_rss_bytes(self) -> int:
        """Return that of its children."""
        return resident_bytes(self.process.children(recursive=True))


@contextmanager
def mlx_manager_server(
    model: Path, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run this package's server on one model; `folder` takes its database and its output.

    Its telemetry is the default, and what `environment` says: never what happens to be set around the benchmark.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        str(Path(sys.executable).parent / "mlx-manager"),
        *("server", "--port", "0", "--model-dir", str(model.parent), "--model", model.name),
    ]
    own = {
        "MLX_SERVER_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'server.db'}",
        "MLX_SERVER_TRACES_PATH": str(folder / "traces.db"),
        "MLX_SERVER_HUB_CACHE": str(folder / "hub"),
        # The bare loop makes a token a step, and answers of random models repeat themselves: `benchmarks.lookup`.
        "MLX_SERVER_LOOKUP_TOKENS": "0",
    }
    around = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "LOGFIRE_"))
    }
    with _running(command, {**around, **own, **(environment or {})}, folder) as running:
        yield Server(running.announced_port(), model.name, psutil.Process(running.process.pid))


@contextmanager
def mlx_lm_server(model: Path, folder: Path) -> Iterator[Server]:
    """Run mlx-lm's own server on one model, with the same BLAS as the other contenders."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    command = [sys.executable, "-m", "mlx_lm.server"]
    arguments = ["--model", str(model), "--host", HOST, "--port", str(port)]
    environment = {**fast_blas(), "HF_HUB_OFFLINE": "1"}
    with _running([*command, *arguments], environment, folder) as running:
        running.wait_for(f"http://{HOST}:{port}/health")
        yield Server(port, str(model), psutil.Process(running.process.pid))


def fast_blas() -> dict[str, str]:
    """Return this process's environment with the BLAS library that our engine process is given."""
    return engine_environment(os.environ, find_openblas())


@dataclass(frozen=True, slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    output: Path

    def announced_port(self) -> int:
        """Wait until the server says where it is."""
        for _ in self._polls():
            if found := _ADDRESS.search(self.output.read_text(errors="replace")):
                return int(found.group(1))
        raise self._failure()

    def wait_for(self, url: str) -> None:
        """Wait until the server answers at `url`."""
        for _ in self._polls():
            try:
                with urllib.request.urlopen(url, timeout=START_S):
                    return
            except urllib.error.HTTPError:
                return
            except OSError:
                continue
        raise self._failure()

    def _polls(self) -> Iterator[None]:
        end_s = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < end_s:
            yield
            time.sleep(POLL_S)

    def _failure(self) -> ServerFailed:
        said = self.output.read_text(errors="replace")[-2000:]
        return ServerFailed(f"{self.process.args!r} did not start:\n{said}")


@contextmanager
def _running(
    command: list[str], environment: Mapping[str, str], folder: Path
) -> Iterator[_Running]:
    output = folder / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        yield _Running(process, output)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
