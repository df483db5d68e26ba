"""The environment that an engine process is given."""

from __future__ import annotations

from pathlib import Path

from mlx_manager.mlx_server.workers.blas import engine_environment

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
