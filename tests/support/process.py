"""Run the command line as a user does: a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.running import wait_until

COMMAND = Path(sys.executable).parent / "mlx-manager"
URL = re.compile(r"is at (http://\S+)")


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """The environment of a machine that has nothing of ours set, with all data in `folder`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MLX_")}
    own = {
        "MLX_SERVER_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'mlx.db'}",
        "MLX_SERVER_TRACES_PATH": str(folder / "traces.db"),
        "HF_HOME": str(folder / "hub"),
        "MLX_SERVER_LM_STUDIO_DIR": str(folder / "lm-studio"),
        "COLUMNS": "200",
    }
    return plain | own | changes


def run(folder: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [COMMAND, *arguments],
        env=environment(folder, **changes),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@dataclass
class Started:
    """A server process; `output` grows while it runs."""

    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.output)

    @property
    def url(self) -> str:
        found = URL.search(self.text)
        assert found, self.text
        return found[1]

    def wait(self, timeout_s: float = 60) -> int:
        return self.process.wait(timeout_s)


@contextmanager
def started(folder: Path, *arguments: str, **changes: str) -> Iterator[Started]:
    """Run a server until the block ends; it listens on a free port unless told otherwise."""
    process = subprocess.Popen(
        [COMMAND, *arguments, *([] if "--port" in arguments else ["--port", "0"])],
        env=environment(folder, **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Started(process)
    reader = threading.Thread(target=_collect, args=[server])
    reader.start()
    try:
        wait_until(lambda: bool(URL.search(server.text)) or process.poll() is not None, 120)
        assert process.poll() is None, server.text
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            reader.join()


def _collect(server: Started) -> None:
    assert server.process.stdout is not None
    with server.process.stdout as lines:
        for line in lines:
            server.output.append(line)
