"""Train the starter on batches without end; progress is printed as it goes."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from mlx_lm.models.qwen3 import Model

from tools.starter.learner import Batch, Learner

PEAK_RATE, FINAL_RATE = 2e-3, 5e-5
WARM_UP_STEPS = 100
PRINT_EVERY = 50


@dataclass(frozen=True)
class Progress:
    """How far a training has come."""

    step: int
    seconds: float
    tokens: int
    loss: float


def train(
    model: Model, batches: Iterator[Batch], *, steps: int, minutes: float | None = None,
    peak_rate: float = PEAK_RATE,
) -> Progress:  # fmt: skip
    """Train for so many steps, or for so many minutes when they are given."""
    learner, started = Learner(model), time.monotonic()
    step, tokens, smooth, done = 0, 0, math.nan, 0.0
    while done < 1:
        batch = next(batches)
        loss = learner.learn(batch, _rate(done, step, peak_rate))
        smooth = loss if step == 0 else 0.97 * smooth + 0.03 * loss
        step, tokens = step + 1, tokens + batch.tokens.size
        elapsed = time.monotonic() - started
        done = step / steps if minutes is None else elapsed / (60 * minutes)
        if step % PRINT_EVERY == 0:
            _report(done, Progress(step, elapsed, tokens, smooth))
    return Progress(step, time.monotonic() - started, tokens, smooth)


def _rate(done: float, step: int, peak_rate: float) -> float:
    """Return the learning rate: a short rise, then a cosine down to nearly nothing."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    rise = min(1.0, (step + 1) / WARM_UP_STEPS)
    return rise * (FINAL_RATE + (peak_rate - FINAL_RATE) * cosine)


def _report(done: float, now: Progress) -> None:
    speed = now.tokens / now.seconds
    print(
        f"step {now.step}  {done:.1%}  {now.seconds:.0f} s  {speed:.0f} tokens/s  "
        f"loss {now.loss:.3f}",
        flush=True,
    )
