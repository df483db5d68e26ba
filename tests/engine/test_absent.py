"""An engine comes up without the libraries that it never uses, and leaves them to whoever does."""

from __future__ import annotations

import subprocess
import sys

ENGINE = """
import runpy, sys
try:
    runpy.run_module("mlx_manager.mlx_server.engine", run_name="__main__")
except SystemExit as end:
    assert end.code == 2, "it wants arguments"
assert "mlx_lm" in sys.modules
assert {"transformers", "huggingface_hub"}.isdisjoint(sys.modules)

import huggingface_hub
from transformers import AutoTokenizer
assert AutoTokenizer.from_pretrained and huggingface_hub.snapshot_download
"""


def test_an_engine_imports_neither_transformers_nor_the_hub_and_a_model_s_own_code_still_can() -> (
    None
):
    done = subprocess.run(
        [sys.executable, "-c", ENGINE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
