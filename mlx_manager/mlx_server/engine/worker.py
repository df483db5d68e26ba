"""What the engine process does: load a model and serve it.

One thread does everything but compile grammars, loading included, because MLX's streams belong to a thread. The end of
the channel is the end of the process; so is that of the API process, whatever is done then.
"""

from __future__ import annotations

import argparse
import faulthandler
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, get_args

import mlx.core as mx
import msgspec

from mlx_manager.long_lived import keep_all_so_far
from mlx_manager.mlx_server.engine.blas_threads import BlasThreads
from mlx_manager.mlx_server.engine.channel import Channel
from mlx_manager.mlx_server.engine.embedding_engine import EmbeddingEngine
from mlx_manager.mlx_server.engine.embedding_model import load_embedding_model
from mlx_manager.mlx_server.engine.embedding_scheduler import EmbeddingScheduler
from mlx_manager.mlx_server.engine.engine import Engine
from mlx_manager.mlx_server.engine.grammar import Vocabulary
from mlx_manager.mlx_server.engine.grammar_compiler import GrammarCompiler
from mlx_manager.mlx_server.engine.kv_bits import KvBitsImpossible, quantise_kv
from mlx_manager.mlx_server.engine.kv_cost import bytes_beside, measure_kv_cost
from mlx_manager.mlx_server.engine.loading import Tell, load
from mlx_manager.mlx_server.engine.messages import (
    BEAT_S,
    EngineKind,
    Heartbeat,
    LoadFailed,
    Pass,
    Ready,
    Step,
    ToEngine,
    Vitals,
)
from mlx_manager.mlx_server.engine.orphan import end_with_parent
from mlx_manager.mlx_server.engine.prefix_disk import DiskLimits, PrefixDisk
from mlx_manager.mlx_server.engine.prefix_root import digest_of, root_of
from mlx_manager.mlx_server.engine.row_state import kinds_of
from mlx_manager.mlx_server.engine.runner import Runner
from mlx_manager.mlx_server.engine.scheduler import Limits, Scheduler

LAST_WORDS_S = 2.0
# What a step may take for another one to follow soon.
QUICK_STEP_S = 0.002


class Stepping(Protocol):
    """What both kinds of engine are: messages in, a report per step out."""

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to report."""
        ...

    def handle(self, message: ToEngine) -> None:
        """Take one message from the inbox."""
        ...

    def step(self) -> Step | Pass:
        """Advance everything by one step and say what happened."""
        ...

    def vitals(self) -> Vitals:
        """Say how the engine is."""
        ...

    def close(self) -> None:
        """Let threads beside this one end."""
        ...


def main() -> int:
    """Load the model named on the command line and serve it until the channel ends."""
    arguments = _parse_arguments()
    end_with_parent()
    # MLX ends the process where an allocation fails, without a word: this says where.
    faulthandler.enable()
    # What the API process sends one that hangs, before it ends it.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # When to end is the API process's decision, whoever presses Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if arguments.pooled_bytes is not None:
        limit_pool(arguments.pooled_bytes)
    channel = Channel(socket.socket(fileno=arguments.channel))
    limits = Limits(
        arguments.max_batch,
        arguments.chunk,
        arguments.idle_chunk,
        round(arguments.token_gap_ms * 1e6),
        kv_budget_bytes=arguments.kv_budget_bytes,
    )
    try:
        engine, ready = _make_engine(arguments, limits, channel)
    except KvBitsImpossible as error:
        return _fail(channel, str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the API process is told
        return _fail(channel, f"{type(error).__name__}: {error}")
    keep_all_so_far()
    channel.send(ready)
    with closing(engine):
        serve(channel, engine)
    return 0


def _make_engine(
    arguments: argparse.Namespace, limits: Limits, channel: Channel
) -> tuple[Stepping, Ready]:
    """Load the model that the command line names, as what it is."""
    if arguments.kind == "chat":
        return make_chat_engine(
            arguments.model,
            limits,
            arguments.prefix_cache_bytes,
            channel.wake,
            arguments.adapter,
            channel.send,
            _prefix_disk(arguments),
            arguments.lookup_tokens,
            arguments.shared_bytes,
            arguments.kv_bits,
        )
    if arguments.kv_bits is not None:
        raise KvBitsImpossible("kv_bits is for models that chat. Leave it out for this one.")
    return make_embedding_engine(arguments.model, limits, channel.send)


def _fail(channel: Channel, reason: str) -> int:
    """Say why the model is not there, and return the exit status."""
    channel.send(LoadFailed(reason))
    channel.drain(LAST_WORDS_S)
    return 1


def limit_pool(most_bytes: int) -> None:
    """Have MLX keep no more of freed buffers; on a GPU it would keep all that there is room for."""
    own_bytes = mx.set_cache_limit(most_bytes)
    mx.set_cache_limit(min(own_bytes, most_bytes))


def make_chat_engine(
    path: Path,
    limits: Limits,
    prefix_cache_bytes: int | None,
    wake: Callable[[], None],
    adapter: Path | None = None,
    tell: Tell | None = None,
    prefix_disk: tuple[Path, DiskLimits] | None = None,
    lookup_tokens: int = 0,
    shared_bytes: int | None = None,
    kv_bits: int | None = None,
) -> tuple[Stepping, Ready]:
    """Load a language model, with a LoRA adapter or without, and find out how much its sequences need and may have.

    `wake` is called, from another thread, when there is something to do; `tell` is told how far the load is. The folder
    of `prefix_disk` is this model's in that of all models. Of `shared_bytes`, by default what the machine has for it,
    stored prompts get up to `prefix_cache_bytes` as long as no sequence needs them; None: none are stored. Keys and
    values have `kv_bits` for each number; None: they are whole. Raises KvBitsImpossible where they can't have those.
    """
    grammars = GrammarCompiler(Vocabulary(path), wake)
    grammars.prepare()
    folders = [path] if adapter is None else [path, adapter]
    with ThreadPoolExecutor(1, "prefix-root") as beside:
        digest = prefix_disk and beside.submit(digest_of, folders, prefix_disk[0].parent)
        loaded = load(path, adapter, tell)
    if kv_bits is not None:
        quantise_kv(loaded.model, kv_bits)
    weights_bytes = loaded.ready.weights_bytes
    if shared_bytes is None:
        shared_bytes = bytes_beside(weights_bytes)
    limits = _limits_of(loaded.model, limits, shared_bytes)
    disk = None
    if prefix_disk is not None and digest is not None:
        folder, disk_limits = prefix_disk
        root = root_of(digest.result(), loaded.ready.dtype, kv_bits)
        disk = PrefixDisk(folder.parent, folder.name, root, disk_limits, wake)
    runner = Runner(
        loaded.model, limits.max_batch, prefix_cache_bytes, shared_bytes, disk, lookup_tokens
    )
    ready = msgspec.structs.replace(
        loaded.ready,
        kv_cost=limits.kv_cost,
        kv_budget_bytes=limits.kv_budget_bytes,
        chunk_tokens=limits.chunk_tokens,
    )
    threads = BlasThreads(weights_bytes)
    return Engine(runner, Scheduler(limits), threads, grammars=grammars), ready


def _limits_of(model: Any, limits: Limits, shared_bytes: int) -> Limits:
    """Return the limits with what a model's sequences need, of `shared_bytes`, and how many of them it can batch."""
    return replace(
        limits,
        max_batch=limits.max_batch if kinds_of(model).are_batchable else 1,
        kv_cost=measure_kv_cost(model),
        kv_budget_bytes=min(limits.kv_budget_bytes or shared_bytes, shared_bytes),
    )


def make_embedding_engine(
    path: Path, limits: Limits, tell: Tell | None = None
) -> tuple[Stepping, Ready]:
    """Load a model that makes vectors."""
    model = load_embedding_model(path, tell)
    threads = BlasThreads(model.ready.weights_bytes)
    return EmbeddingEngine(model, EmbeddingScheduler(limits), threads), model.ready


class Haste:
    """Knows which reports can wait for the next one: those of quick steps that say nothing but some more tokens."""

    def __init__(self) -> None:
        self._numbers = 0

    def can_wait(self, step: Step | Pass, took_s: float) -> bool:
        """Whether nobody begins or ends with a step that took so long, nor has a first token in it."""
        if not isinstance(step, Step):
            return False
        numbers, self._numbers = self._numbers, len(step.tokens)
        is_news = step.admitted or step.ended or step.following or step.prompt_logprobs
        return not is_news and self._numbers <= numbers and took_s < QUICK_STEP_S


def serve(channel: Channel, engine: Stepping) -> None:
    """Step while there is work, looking at the inbox before each step, and beat once a second."""
    beat_at_s, haste = time.monotonic() + BEAT_S, Haste()
    while True:
        wait_s = 0.0 if engine.has_work else max(beat_at_s - time.monotonic(), 0.0)
        for message in channel.receive(wait_s):
            engine.handle(message)
        if channel.is_closed:
            return
        if engine.has_work:
            began_s = time.monotonic()
            step = engine.step()
            can_wait = haste.can_wait(step, time.monotonic() - began_s)
            channel.send(step, can_wait=can_wait and engine.has_work)
        if (now_s := time.monotonic()) >= beat_at_s:
            channel.send(Heartbeat(time.monotonic_ns(), engine.vitals()))
            beat_at_s = now_s + BEAT_S


def _prefix_disk(arguments: argparse.Namespace) -> tuple[Path, DiskLimits] | None:
    if arguments.prefix_disk is None:
        return None
    return arguments.prefix_disk, DiskLimits(*map(int, arguments.prefix_disk_bytes.split(",")))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel", type=int, required=True, help="file descriptor of the socket")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--adapter", type=Path, help="folder of a LoRA adapter")
    parser.add_argument("--kv-bits", type=int, help="left out: keys and values are whole")
    parser.add_argument("--kind", choices=get_args(EngineKind), default="chat")
    parser.add_argument("--max-batch", type=int, required=True)
    parser.add_argument("--chunk", type=int, required=True)
    parser.add_argument("--idle-chunk", type=int, required=True)
    parser.add_argument("--prefix-cache-bytes", type=int, help="left out: none are stored")
    parser.add_argument("--prefix-disk", type=Path, help="folder of this model's prefixes")
    parser.add_argument("--prefix-disk-bytes", help="bytes in all and in a day, with a comma")
    parser.add_argument("--lookup-tokens", type=int, default=0)
    parser.add_argument("--token-gap-ms", type=float, required=True)
    parser.add_argument("--kv-budget-bytes", type=int, help="all of --shared-bytes if left out")
    parser.add_argument("--pooled-bytes", type=int, help="of freed buffers; MLX's own if left out")
    parser.add_argument("--shared-bytes", type=int, help="derived from the memory if left out")
    return parser.parse_args()
