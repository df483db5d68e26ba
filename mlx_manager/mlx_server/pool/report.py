"""What the log says of a model that was loaded."""

from __future__ import annotations

import logging

from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.workers.process import EngineProcess

logger = logging.getLogger(__name__)


def report_loaded(files: ModelFiles, engine: EngineProcess, seconds: float) -> None:
    """Say what was loaded, and what its owner should know of it."""
    if (ready := engine.ready) is None:
        return
    logger.info(
        "model loaded %(model)s weights_bytes=%(weights_bytes)d dtype=%(dtype)s device=%(device)s "
        "load_s=%(load_s).2f pid=%(pid)s",
        {
            "model": files.id,
            "weights_bytes": ready.weights_bytes,
            "dtype": ready.dtype,
            "device": ready.device,
            "load_s": seconds,
            "pid": engine.pid,
        },
    )
    if files.kind == "chat" and ready.kv_cost is None:
        logger.warning(
            "memory not predicted: %(model)s keeps of its requests what can't be counted in advance. They are "
            "admitted by number; lower MLX_SERVER_MAX_BATCH if memory runs short",
            {"model": files.id},
        )
    if not ready.has_fast_blas:
        logger.warning(
            "OpenBLAS is not installed: prompts are read about 20 times slower than they could be. "
            "On Debian and Ubuntu: apt install libopenblas0-pthread"
        )
