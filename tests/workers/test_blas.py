"""The environment that an engine process is given."""

from __future__ import annotations

from pathlib import Path

from mlx_manager.mlx_server.state import engine_options
from mlx_manager.mlx_server.workers.blas import engine_environment, find_openblas
from tests.support.running import settings_for

LIBRARY = Path("/usr/lib/openblas.so")


def test_the_library_is_preloaded_before_what_was_preloaded_already() -> None:
    environment = engine_environment({"LD_PRELOAD": "other.so", "A": "b"}, LIBRARY)
    assert environment["LD_PRELOAD"] == f"{LIBRARY} other.so"
    assert environment["A"] == "b"


def test_its_threads_sleep_unless_somebody_has_decided_otherwise() -> None:
    assert engine_environment({}, LIBRARY)["OPENBLAS_THREAD_TIMEOUT"] == "4"
    decided = engine_environment({"OPENBLAS_THREAD_TIMEOUT": "20"}, LIBRARY)
    assert decided["OPENBLAS_THREAD_TIMEOUT"] == "20"


def test_without_a_library_nothing_is_preloaded() -> None:
    environment = engine_environment({}, None)
    assert "LD_PRELOAD" not in environment
    assert "OPENBLAS_THREAD_TIMEOUT" not in environment


def test_a_server_has_its_engines_use_the_library_that_is_there_or_was_set(tmp_path: Path) -> None:
    found = engine_options(settings_for(tmp_path, tmp_path))
    assert found.blas_library == find_openblas()
    chosen = engine_options(settings_for(tmp_path, tmp_path, blas_library=LIBRARY))
    assert chosen.blas_library == LIBRARY
