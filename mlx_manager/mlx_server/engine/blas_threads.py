"""Give OpenBLAS one thread for small products and all of them for large ones."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

# In a model below this size the products of a decode step end before a second thread has woken, and waking it takes
# a core from the API process: docs/decisions/0005.
SMALL_MODEL_BYTES = 64 * 2**20
# Prompt tokens in a step from which on a second thread is worth its waking.
MANY_TOKENS = 256


class BlasThreads:
    """How many threads the next step's products get. Does nothing without OpenBLAS or for a model that isn't small."""

    def __init__(self, weights_bytes: int) -> None:
        self._set, self._most = _openblas()
        self._is_small = weights_bytes < SMALL_MODEL_BYTES and self._most > 1
        # Unknown: whoever was in this process before may have set another number.
        self._now = 0

    def suit(self, prompt_tokens: int) -> None:
        """Set the number for a step that computes so many prompt tokens."""
        if not self._is_small:
            return
        wanted = self._most if prompt_tokens >= MANY_TOKENS else 1
        if wanted != self._now:
            self._set(wanted)
            self._now = wanted


@cache
def _openblas() -> tuple[Callable[[int], object], int]:
    """Return the setter of the OpenBLAS in this process, and the number of threads that it was started with."""
    process = ctypes.CDLL(None)
    try:
        return process.openblas_set_num_threads, int(process.openblas_get_num_threads())
    except AttributeError:
        return _nothing, 1


def _nothing(_threads: int) -> None:
    """There is no OpenBLAS to tell."""
