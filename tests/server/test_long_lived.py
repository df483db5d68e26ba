"""What lives as long as a server's process is no work for Python's garbage collector."""

import subprocess
import sys
from pathlib import Path

import pytest

IMPORTED_OBJECTS = 100_000
FEW_OBJECTS = 10_000
STARTER = Path(__file__).parents[2] / "mlx_manager" / "starter"
LOAD = f"""
from pathlib import Path
from mlx_manager.mlx_server.generation.model_text import load_model_text
from mlx_manager.mlx_server.pool.catalog import ModelFiles
load_model_text(ModelFiles("starter", Path({str(STARTER)!r}), "built-in", 0))
"""


def counted(statements: str, folder: Path) -> tuple[int, int]:
    """Run statements in a Python of its own; return the objects that it keeps, and those that it will look through."""
    count = "import gc; print(gc.get_freeze_count(), len(gc.get_objects()))"
    told = subprocess.run(
        [sys.executable, "-c", f"{statements}\n{count}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, looked_through = told.stdout.split()[-2:]
    return int(kept), int(looked_through)


@pytest.mark.parametrize("main", ["mlx_manager.main", "mlx_manager.mlx_server.main"])
def test_what_a_server_imports_is_collected_no_more(main: str, tmp_path: Path) -> None:
    kept, looked_through = counted(f"import {main}", tmp_path)
    assert kept > IMPORTED_OBJECTS
    assert looked_through < FEW_OBJECTS


def test_what_the_first_model_has_it_import_is_neither(tmp_path: Path) -> None:
    main = "import mlx_manager.mlx_server.main"
    before, _ = counted(main, tmp_path)
    kept, looked_through = counted(f"{main}\n{LOAD}", tmp_path)
    assert kept > before
    assert looked_through < FEW_OBJECTS
