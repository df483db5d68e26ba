"""An engine process ends with the process that started it, whatever it does then."""

from __future__ import annotations

import subprocess
import sys

from tests.support.running import wait_until
from tests.workers.processes import runs

# A process that hears nothing: the kernel's help is taken from it, and only the thread looks.
CHILD = """
import ctypes, time
from mlx_manager.mlx_server.engine.orphan import PR_SET_PDEATHSIG, end_with_parent
end_with_parent(0.05)
if hasattr(ctypes.CDLL(None), "prctl"):
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
print(flush=True)
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_the_death_of_its_parent_ends_one_that_hears_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert runs(pid)
        parent.kill()
        parent.wait()
        wait_until(lambda: not runs(pid))
