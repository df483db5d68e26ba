"""The engine process: `python -m mlx_manager.mlx_server.engine`, started by `workers.process`."""

from __future__ import annotations

import sys

from mlx_manager.mlx_server.engine.absent import left_out

if __name__ == "__main__":
    with left_out():
        from mlx_manager.mlx_server.engine.worker import main
    sys.exit(main())
