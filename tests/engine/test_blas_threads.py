"""Small products get one thread of OpenBLAS, large ones all: asked of a process that has it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mlx_manager.mlx_server.workers.blas import engine_environment, find_openblas

SCRIPT = """
import ctypes
from mlx_manager.mlx_server.engine.blas_threads import MANY_TOKENS, SMALL_MODEL_BYTES, BlasThreads
count = ctypes.CDLL(None).openblas_get_num_threads
small, large = BlasThreads(SMALL_MODEL_BYTES - 1), BlasThreads(SMALL_MODEL_BYTES)
seen = [count()]
for threads, tokens in ((large, 0), (small, 0), (small, MANY_TOKENS), (small, MANY_TOKENS - 1), (small, 10_000)):
    threads.suit(tokens)
    seen.append(count())
print(*seen)
"""


def test_a_small_model_decodes_with_one_thread_and_reads_long_prompts_with_all() -> None:
    library = find_openblas()
    if library is None:
        pytest.skip("OpenBLAS is not installed")
    environment = {**engine_environment(os.environ, library), "OPENBLAS_NUM_THREADS": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["2", "2", "1", "2", "1", "2"]
