"""Which running server a request belongs to, and whether that one is gone."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

_PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True)
class Instance:
    """One server in one process: `machine` is where `pid` has a meaning, `token` tells two in a process apart."""

    machine: str
    pid: int
    token: str

    def __str__(self) -> str:
        return f"{self.pid}@{self.machine}#{self.token}"

    def sees_end_of(self, other: str) -> bool:
        """Whether the process of another instance, written as a string, surely runs no more.

        False where that can't be known from here: on another machine, or when its number has been given to a
        new process.
        """
        pid, _, rest = other.partition("@")
        machine, _, _ = rest.rpartition("#")
        return machine == self.machine and pid.isdecimal() and not _runs(int(pid))


def this_instance() -> Instance:
    """Return a new instance in this process."""
    return Instance(_machine(), os.getpid(), uuid.uuid4().hex[:8])


def _machine() -> str:
    """Name the place in which process numbers are unique: a host, or a container on it."""
    namespace = _PID_NAMESPACE.readlink() if _PID_NAMESPACE.is_symlink() else ""
    # The node too: two hosts may have the same name. It is random where there is none, and so equals no other.
    return f"{socket.gethostname()[:64]}/{uuid.getnode():012x}/{namespace}"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
