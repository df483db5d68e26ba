"""The engine process: `python -m mlx_manager.mlx_server.engine`, started by `workers.process`."""

from __future__ import annotations

import sys
import traceback

from mlx_manager.mlx_server.engine.absent import left_out

if __name__ == "__main__":
    try:
        with left_out():
            from mlx_manager.mlx_server.engine.worker import main
    except ImportError as error:
        traceback.print_exception(error)
        # The last line is what the user gets to see.
        sys.exit(f"ImportError: {error}. Install the versions in requirements.lock.")
    sys.exit(main())
