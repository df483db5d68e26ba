"""What a worker makes of its command line: an engine that shares its memory out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx

from mlx_manager.mlx_server.engine.messages import Room, SamplingParameters, Submit, Vitals
from mlx_manager.mlx_server.engine.scheduler import Limits
from mlx_manager.mlx_server.engine.worker import Stepping, limit_pool, make_chat_engine

MIB = 2**20


def read(engine: Stepping, sequence_id: int, prompt: Iterable[int], max_tokens: int) -> Vitals:
    """Have a prompt answered, and return how the engine was just before the answer ended."""
    submit = Submit(sequence_id, list(prompt), max_tokens, [], SamplingParameters())
    engine.handle(submit)
    before = engine.vitals()
    while engine.has_work:
        before = engine.vitals()
        engine.step()
    return before


def test_stored_prompts_give_way_to_a_request_that_needs_their_memory(model_dir: Path) -> None:
    engine, ready = make_chat_engine(
        model_dir / "test" / "tiny", Limits(4, 256, 256), MIB, lambda: None, shared_bytes=MIB
    )
    cost = ready.kv_cost
    assert cost is not None
    assert ready.kv_budget_bytes == MIB, "all of it is for one request, if need be"
    tokens = next(n for n in itertools.count(256, 256) if cost.row_bytes(n + 512) > MIB)
    for at in range(4):
        read(engine, 1 + at, [60 + at, *range(64, 64 + 300)], 1)
    stored_bytes = engine.vitals().prefix_cache_bytes

    vitals = read(engine, 9, itertools.islice(itertools.cycle(range(40, 500)), tokens), 16)
    assert vitals.kv_bytes is not None
    assert vitals.kv_bytes + stored_bytes > MIB, "there would not be room for both"
    assert vitals.kv_bytes + vitals.prefix_cache_bytes <= MIB
    engine.close()


def test_stored_prompts_are_given_up_when_that_is_said_and_kept_again_when_there_is_room(
    model_dir: Path,
) -> None:
    engine, _ = make_chat_engine(
        model_dir / "test" / "tiny", Limits(4, 256, 256), MIB, lambda: None, shared_bytes=2 * MIB
    )
    prompt = range(40, 400)
    read(engine, 1, prompt, 1)
    assert engine.vitals().prefix_cache_bytes > 0

    engine.handle(Room(0, MIB, MIB))
    vitals = engine.vitals()
    assert vitals.prefix_cache_bytes == 0
    assert vitals.pooled_bytes == 0, "what they took is free for others"
    read(engine, 2, prompt, 1)
    assert engine.vitals().prefix_cache_bytes == 0

    engine.handle(Room(MIB, 2 * MIB, 2 * MIB))
    read(engine, 3, prompt, 1)
    assert engine.vitals().prefix_cache_bytes > 0
    engine.close()


def test_requests_are_admitted_by_what_there_is_now(model_dir: Path) -> None:
    engine, ready = make_chat_engine(
        model_dir / "test" / "tiny", Limits(4, 256, 256), None, lambda: None, shared_bytes=MIB
    )
    assert ready.kv_cost is not None
    row_bytes = ready.kv_cost.row_bytes(256)

    def running(budget_bytes: int, *sequence_ids: int) -> int:
        engine.handle(Room(0, MIB, budget_bytes))
        for sequence_id in sequence_ids:
            engine.handle(Submit(sequence_id, [40, 41], 20, [], SamplingParameters()))
        engine.step()
        most = engine.vitals().running
        while engine.has_work:
            engine.step()
        return most

    assert running(3 * row_bytes, 1, 2, 3) == 3
    assert running(2 * row_bytes, 4, 5, 6) == 2
    assert running(3 * row_bytes, 7, 8, 9) == 3
    engine.close()


def test_mlx_is_let_keep_no_more_freed_buffers_than_it_would() -> None:
    own_bytes = mx.set_cache_limit(MIB)
    mx.set_cache_limit(own_bytes)
    limit_pool(own_bytes * 2)
    assert mx.set_cache_limit(own_bytes) == own_bytes
    limit_pool(own_bytes // 2)
    assert mx.set_cache_limit(own_bytes) == own_bytes // 2
