"""The terminal as a sink: a pipe that nobody reads, or a terminal that is held, must not hold a request."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TextIO

from mlx_manager.observability.losses import Losses
from mlx_manager.observability.outbox import Outbox


class BackgroundText(io.TextIOBase):
    """Writes to `output` on a thread of its own, and loses what that can't take in time."""

    def __init__(self, output: TextIO, losses: Losses) -> None:
        self._output = output
        self.outbox = Outbox[str]("console", self._print, losses, delay_s=0.02)

    def write(self, text: str) -> int:
        """Take `text` without waiting."""
        self.outbox.put(text)
        return len(text)

    def isatty(self) -> bool:
        """Whether colours make sense."""
        return self._output.isatty()

    def _print(self, batch: Sequence[str]) -> bool:
        self._output.write("".join(batch))
        self._output.flush()
        return True
