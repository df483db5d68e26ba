"""One step of training, computed by two threads on a half of the batch each."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models.qwen3 import Model

THREADS = 2


@dataclass(frozen=True)
class Batch:
    """Padded rows of tokens; which positions of them (flattened) are to predict what, how gladly."""

    tokens: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def halves(self) -> list["Batch"]:
        """Return the batch in as many parts as there are threads, a single row in one."""
        rows, width = self.tokens.shape
        cuts = [rows * part // THREADS for part in range(THREADS + 1)]
        return [self._rows(first, last, width) for first, last in pairwise(cuts) if first < last]

    def _rows(self, first: int, last: int, width: int) -> "Batch":
        inside = (self.positions >= first * width) & (self.positions < last * width)
        positions = self.positions[inside] - first * width
        rows = self.tokens[first:last]
        return Batch(rows, positions, self.targets[inside], self.weights[inside])


class Learner:
    """A model with its optimiser: one call of `learn` is one step.

    MLX computes most of a small model's step on one core, so each thread has a replica of the model
    and an MLX stream of its own. The halves are added in a fixed order: the same seed gives the same
    weights.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._optimizer = optim.AdamW(1e-3, betas=[0.9, 0.95], weight_decay=0.01)
        self._threads = ThreadPoolExecutor(THREADS)
        self._replicas = [_Replica(model.args) for _ in range(THREADS)]

    def learn(self, batch: Batch, rate: float) -> float:
        """Take one step at this learning rate and return the mean loss before it."""
        weights = self._model.parameters()
        halves = batch.halves()
        jobs = [
            self._threads.submit(replica.gradients, weights, half)
            for replica, half in zip(self._replicas, halves, strict=False)
        ]
        results = [job.result() for job in jobs]
        total = float(batch.weights.sum())
        gradients = tree_map(lambda *parts: sum(parts) / total, *(grads for _, grads in results))
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        self._optimizer.learning_rate = rate
        self._optimizer.update(self._model, gradients)
        mx.eval(self._model.parameters(), self._optimizer.state)
        return sum(loss for loss, _ in results) / total


class _Replica:
    """A copy of the model, used by one thread at a time."""

    def __init__(self, args: Any) -> None:
        self._model = Model(args)
        self._gradient = nn.value_and_grad(self._model, self._loss)

    def gradients(self, weights: dict[str, Any], batch: Batch) -> tuple[float, dict[str, Any]]:
        """Return the summed loss of a batch, and its gradients with these weights."""
        with mx.stream(_own_stream()):
            self._model.update(weights)
            loss, gradients = self._gradient(
                mx.array(batch.tokens),
                mx.array(batch.positions),
                mx.array(batch.targets),
                mx.array(batch.weights),
            )
            mx.eval(loss, gradients)
        return float(loss.item()), gradients

    def _loss(
        self, tokens: mx.array, positions: mx.array, targets: mx.array, weights: mx.array
    ) -> mx.array:
        # Only the answers' positions reach the vocabulary, the most costly layer.
        hidden = self._model.model(tokens)
        hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
        logits = self._model.model.embed_tokens.as_linear(hidden)
        return nn.losses.cross_entropy(logits, targets, weights, reduction="sum")


_local = threading.local()


def _own_stream() -> mx.Stream:
    """Return this thread's MLX stream: arrays can only be computed in the thread that made theirs."""
    if not hasattr(_local, "stream"):
        mx.set_default_device(mx.cpu)
        _local.stream = mx.new_stream(mx.cpu)
    stream: mx.Stream = _local.stream
    return stream
