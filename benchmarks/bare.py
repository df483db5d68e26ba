"""The physical limit: mlx-lm's `BatchGenerator` in a bare loop. `python -m benchmarks.bare MODEL`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load_model

from benchmarks.child import serve
from benchmarks.work import Answers, BareRequest, BareTask

MAX_BATCH = 32


@dataclass(slots=True)
class Row:
    """One sequence that runs: whose it is and when its last token came."""

    client: int
    output_tokens: int
    inserted_s: float
    last_token_s: float | None = None
    tokens: int = 0


@dataclass(slots=True)
class Record:
    """What has been seen so far; the times to the first token are by client."""

    first_token_s: list[list[float]]
    gaps_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    requests: int = 0
    tokens: int = 0


class Turns:
    """Whose request is next, and when."""

    def __init__(self, task: BareTask) -> None:
        self._waiting = [iter(requests) for requests in task.clients]
        self._due: list[tuple[float, int, BareRequest]] = []
        self._is_led = task.is_led
        self._is_over = False
        self.come(range(len(self._waiting)))

    def come(self, clients: Iterable[int]) -> None:
        """Have these clients send their next request, each after its pause."""
        now_s = time.perf_counter()
        for client in clients:
            if one := next(self._waiting[client], None):
                self._due.append((now_s + one.pause_s, client, one))
            elif self._is_led and client == 0:
                self._is_over = True

    def take(self) -> list[tuple[int, BareRequest]]:
        """Return what is due by now."""
        if not self._due:
            return []
        now_s = time.perf_counter()
        taken = [(client, one) for due_s, client, one in self._due if due_s <= now_s]
        self._due = [one for one in self._due if one[0] > now_s]
        return taken

    def wait(self) -> None:
        """Sleep until something is due."""
        time.sleep(max(0.0, min(due_s for due_s, _, _ in self._due) - time.perf_counter()))

    def go_on(self, running: int) -> bool:
        """Return whether there is anything to do, with so many rows that run."""
        return not self._is_over and bool(running or self._due)


class BareLoop:
    """Runs a load with nothing around the model: no queue, no text, no HTTP."""

    def __init__(self, model: Path) -> None:
        loaded, config = load_model(model)
        mx.eval(loaded.parameters())
        # The servers stop at it, so this loop has to look for it as well.
        end_token_id = int(config["eos_token_id"])
        self._generator: Any = BatchGenerator(
            loaded, stop_tokens=[[end_token_id]], completion_batch_size=MAX_BATCH
        )

    def run(self, task: BareTask) -> Answers:
        """Run all requests: of each client one at a time, of all clients together."""
        rows: dict[int, Row] = {}
        record = Record([[] for _ in task.clients])
        started_s, cpu_s = time.perf_counter(), time.process_time()
        turns = Turns(task)
        while turns.go_on(len(rows)):
            if not rows:
                turns.wait()
            if due := turns.take():
                self._insert(due, rows)
            _, responses = self._generator.next()
            now_s = time.perf_counter()
            ended = [
                rows.pop(response.uid).client
                for response in responses
                if _settle(response, rows[response.uid], now_s, record)
            ]
            turns.come(ended)
        self._generator.remove([*rows])
        return Answers(
            wall_s=time.perf_counter() - started_s,
            cpu_s=time.process_time() - cpu_s,
            requests=record.requests,
            tokens=record.tokens,
            first_token_s=[one for own in record.first_token_s for one in own],
            gaps_s=record.gaps_s,
            failures=record.failures,
        )

    def _insert(self, due: Sequence[tuple[int, BareRequest]], rows: dict[int, Row]) -> None:
        """Let these clients' requests join the batch."""
        uids = self._generator.insert(
            [one.prompt for _, one in due], max_tokens=[one.output_tokens for _, one in due]
        )
        now_s = time.perf_counter()
        rows.update(
            (uid, Row(client, one.output_tokens, now_s))
            for uid, (client, one) in zip(uids, due, strict=True)
        )


def _settle(response: Any, row: Row, now_s: float, record: Record) -> bool:
    """Note one token; return whether it was the row's last."""
    if row.last_token_s is None:
        record.first_token_s[row.client].append(now_s - row.inserted_s)
    else:
        record.gaps_s.append(now_s - row.last_token_s)
    row.last_token_s = now_s
    row.tokens += 1
    record.tokens += 1
    if response.finish_reason is None:
        return False
    record.requests += 1
    if row.tokens != row.output_tokens:
        record.failures.append(f"{row.tokens} tokens instead of {row.output_tokens}")
    return True


if __name__ == "__main__":
    serve(BareLoop(Path(sys.argv[1])).run, BareTask)
