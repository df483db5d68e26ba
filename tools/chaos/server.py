"""A server in a process of its own, with all its data in one folder, and what can be done to it from outside."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from tools.chaos.books import Fate
from tools.chaos.inside import sitecustomize
from tools.random_model import Shape, make_random_model

COMMAND = str(Path(sys.executable).parent / "mlx-manager")
MODEL = "chaos/tiny"
START_S = 120.0
# The folder in its own that has the prefix cache's files.
PREFIX_FILES = "prefix"
# From Linux's headers: what makes the superuser write where nobody may, and how to do without.
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24
ENGINE = "mlx_manager.mlx_server.engine"


class Server:
    """`settings` are environment variables without their prefix. Its model is in memory when `start` returns."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.clock = folder / "clock"
        self.tasks = folder / "tasks"
        # What became of each request that it was sent, by its id, as its client saw it.
        self.fates: dict[str, Fate] = {}
        self._models = folder / "models"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.send(signal.SIGTERM)
        await self.ended()

    async def start(self) -> None:
        """Start the process and wait until it answers. Raises RuntimeError with its log when it doesn't."""
        if not self._models.exists():
            make_random_model(self._models / MODEL, Shape(context=16_384))
        log, process = self.folder / "server.log", self._spawn(self.folder / "server.log")
        begin, end_s = log.stat().st_size, time.monotonic() + START_S
        while time.monotonic() < end_s and process.poll() is None:
            said = log.read_bytes()[begin:].decode(errors="replace")
            if found := re.search(r"is at (http://\S+)", said):
                self.url = found[1]
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(log.read_text()[-4000:])

    @property
    def pid(self) -> int:
        """The process id of the API process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the API process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def engines(self) -> list[psutil.Process]:
        """Its engine processes."""
        return [child for child in psutil.Process(self.pid).children() if _is_engine(child)]

    def send(self, number: signal.Signals) -> None:
        """Send the API process a signal, if it is there."""
        if self._process is not None and self.is_running:
            self._process.send_signal(number)

    def send_engines(self, number: signal.Signals) -> None:
        """Send every engine process a signal."""
        for engine in self.engines:
            with suppress(psutil.NoSuchProcess):
                engine.send_signal(number)

    async def ended(self) -> int:
        """Wait for the end of the API process; return its status."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, START_S)

    async def active(self) -> int:
        """How many requests its engines have, by what it says itself."""
        models = (await self.health())["models"]
        return sum(model["active_requests"] + model["waiting_for_engine"] for model in models)

    async def health(self) -> dict[str, list[dict[str, int]]]:
        """Return what `/health` says."""
        async with httpx.AsyncClient(timeout=30, verify=False) as http:
            found: dict[str, list[dict[str, int]]] = (await http.get(f"{self.url}/health")).json()
            return found

    async def metrics(self) -> str:
        """Return its metrics in Prometheus's older text format."""
        async with httpx.AsyncClient(timeout=30, verify=False) as http:
            return (await http.get(f"{self.url}/metrics", headers={"Accept": "text/plain"})).text

    async def figures(self) -> dict[str, float]:
        """Return its metrics, summed over their dimensions."""
        text = await self.metrics()
        sums: dict[str, float] = {}
        for name, value in re.findall(r"^([a-z_]+)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
            sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def _spawn(self, log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [COMMAND, "server", "--port", "0", "--model", MODEL],
                env=self._environment(),
                stdout=output,
                stderr=output,
                preexec_fn=_obey_permissions,
            )
        return self._process

    def _environment(self) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("MLX_")}
        own = {
            "DATABASE_URL": f"sqlite+aiosqlite:///{self.folder / 'mlx.db'}",
            "TRACES_PATH": self.folder / "traces.db",
            "MODEL_DIRS": self._models,
            "METRICS": "true",
            **{name.upper(): value for name, value in self._settings.items()},
        }
        return plain | {
            **{f"MLX_SERVER_{name}": str(value) for name, value in own.items()},
            "HF_HOME": str(self.folder / "hub"),
            "MLX_SERVER_LM_STUDIO_DIR": str(self.folder / "lm-studio"),
            "PYTHONPATH": str(Path(sitecustomize.__file__).parent),
            "CHAOS_CLOCK": str(self.clock),
            "CHAOS_TASKS": str(self.tasks),
            "COLUMNS": "200",
        }


def _obey_permissions() -> None:
    """Have a folder that is read-only be so for the superuser, too, as it is for everybody who serves."""
    if sys.platform == "linux" and os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def _is_engine(process: psutil.Process) -> bool:
    try:
        return ENGINE in process.cmdline()
    except psutil.Error:
        # It has just ended, and nobody has asked how yet.
        return False
