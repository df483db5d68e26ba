"""Faults inside engine processes: Python imports this by itself from a folder in `PYTHONPATH`.

A prompt with one of these pairs of tokens side by side makes the model end its process, or hang, while it is read. What
is decoded comes one token at a time and has no pairs.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import pairwise
from typing import Any

ABORT = (501, 502)
HANG = (503, 504)

if "mlx_manager.mlx_server.engine.worker" in sys.orig_argv:
    from mlx_lm.models.qwen3 import Model

    computed = Model.__call__

    def faulty(self: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        for row in inputs.tolist():
            pairs = set(pairwise(row))
            if ABORT in pairs:
                os.abort()
            if HANG in pairs:
                time.sleep(3600)
        return computed(self, inputs, *rest, **more)

    Model.__call__ = faulty  # type: ignore[method-assign]
