"""Start the manager with nothing but the starter model, and run the conformance checks: `make conformance`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "mlx-manager")
MODEL = "mlx-manager/starter"


def main() -> int:
    """Return the status of the checks; the server ends with them, and what it wrote is removed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(Path(folder))
        serve = [COMMAND, "serve", "--port", "0", "--model", MODEL]
        with subprocess.Popen(
            serve, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            try:
                check = [COMMAND, "doctor", "conformance", "--url", _url(server), "--model", MODEL]
                return subprocess.run(
                    [*check, *sys.argv[1:]], env=environment, check=False
                ).returncode
            finally:
                server.terminate()


def _environment(folder: Path) -> dict[str, str]:
    """That of a machine with nothing of ours set and all data in `folder`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MLX_")}
    return plain | {
        "MLX_SERVER_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'mlx.db'}",
        "MLX_SERVER_TRACES_PATH": str(folder / "traces.db"),
        "HF_HOME": str(folder / "hub"),
        "MLX_SERVER_LM_STUDIO_DIR": str(folder / "lm-studio"),
        "COLUMNS": "200",
    }


def _url(server: subprocess.Popen[str]) -> str:
    """Wait until the server says where it is."""
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"is at (http://\S+)", line):
            return found[1]
    sys.exit("The server did not start.")


if __name__ == "__main__":
    sys.exit(main())
