"""How log lines look: one line each, on standard error, the same for ours and uvicorn's."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """Print log lines from `level` up; libraries only from warning up."""
    logging.basicConfig(format=FORMAT, level=logging.WARNING, force=True)
    for name in ("mlx_manager", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
