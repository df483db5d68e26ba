"""A child process that is asked one thing after the other: a line of JSON each way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from benchmarks.work import Answers

END_S = 10.0
T = TypeVar("T")


class ChildDied(RuntimeError):
    """A child process ended before it had answered."""


class Child:
    """Runs `python -m module arguments`; `async`-free, because only one thing is measured at a time."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def ask(self, task: msgspec.Struct) -> Answers:
        """Have `task` done and return what came of it. Raises ChildDied."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(task) + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise ChildDied(f"{self._module} ended with status {self._process.wait(END_S)}.")
        return msgspec.json.decode(line, type=Answers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(do: Callable[[T], Answers], kind: type[T]) -> None:
    """Be such a child: do each task that comes in, until no more can come."""
    decoder = msgspec.json.Decoder(kind)
    for line in sys.stdin.buffer:
        answers = do(decoder.decode(line))
        sys.stdout.buffer.write(msgspec.json.encode(answers) + b"\n")
        sys.stdout.buffer.flush()
