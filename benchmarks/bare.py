"""The physical limit: mlx-lm's `BatchGenerator` in a bare loop. `python -m benchmarks.bare MODEL`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
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
    """What has been seen so far."""

    first_token_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    requests: int = 0
    tokens: int = 0


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
        waiting = [iter(requests) for requests in task.clients]
        rows: dict[int, Row] = {}
        record = Record()
        started_s, cpu_s = time.perf_counter(), time.process_time()
        self._insert_next(range(len(waiting)), waiting, rows)
        while rows:
            _, responses = self._generator.next()
            now_s = time.perf_counter()
            ended = [
                rows.pop(response.uid).client
                for response in responses
                if _settle(response, rows[response.uid], now_s, record)
            ]
            if ended:
                self._insert_next(ended, waiting, rows)
        return Answers(
            wall_s=time.perf_counter() - started_s,
            cpu_s=time.process_time() - cpu_s,
            requests=record.requests,
            tokens=record.tokens,
            first_token_s=record.first_token_s,
            gaps_s=record.gaps_s,
            failures=record.failures,
        )

    def _insert_next(
        self,
        clients: range | list[int],
        waiting: list[Iterator[BareRequest]],
        rows: dict[int, Row],
    ) -> None:
        """Let the next request of each of these clients join the batch."""
        due = [(client, one) for client in clients if (one := next(waiting[client], None))]
        if not due:
            return
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
        record.first_token_s.append(now_s - row.inserted_s)
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
