"""An engine whose API process is gone has to go, also while it loads, computes for long or hangs.

The end of the channel is seen between two steps only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

LOOK_S = 1.0
# From <sys/prctl.h>
PR_SET_PDEATHSIG = 1


def end_with_parent(look_s: float = LOOK_S) -> None:
    """End this process when the one that started it has ended: on Linux by the kernel, elsewhere within seconds.

    The kernel does it even to a process that stands still. A thread can't while another one holds Python's lock.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=[parent, look_s], name="orphan", daemon=True).start()


def _watch(parent: int, look_s: float) -> None:
    while os.getppid() == parent:
        time.sleep(look_s)
    os._exit(1)
