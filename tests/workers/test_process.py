"""What an engine process does for those who ask it; one process serves all tests of this file."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mlx_manager.chat.events import TraceContext
from mlx_manager.errors import GenerationFailed, MemoryExceeded, Overloaded
from mlx_manager.mlx_server.engine.messages import Loading, SamplingParameters, Submit
from mlx_manager.mlx_server.workers.blas import find_openblas
from mlx_manager.mlx_server.workers.process import READERS_WAKE_S, EngineProcess
from tests.support.running import eventually
from tests.workers.processes import OPTIONS, PROMPT, ask, kill, read, started
from tools.random_model import Shape, make_random_model

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineProcess]:
    """A process that runs four rows and lets four more wait, over a model whose file holds bfloat16."""
    path = make_random_model(tmp_path_factory.mktemp("half"), Shape(dtype="bfloat16"))
    async with started(path, blas_library=find_openblas()) as engine:
        yield engine


async def runs_alone(engine: EngineProcess) -> None:
    """See that nobody else is in the engine: a new answer is computed by itself."""
    async with ask(engine, 3) as stream:
        await read(stream)
    assert stream.ended
    assert stream.ended.stamps.batch_width_max == 1


async def test_it_says_what_it_has_loaded(engine: EngineProcess) -> None:
    ready = engine.ready
    assert ready is not None
    assert ready.dtype in ("float32", "bfloat16")
    if ready.device == "cpu":
        assert ready.dtype == "float32", "bfloat16 is slow on a CPU"
        assert ready.weights_bytes % 4 == 0
    assert ready.weights_bytes > 100_000


async def test_it_says_how_far_its_weights_are(tiny: Path) -> None:
    told: list[Loading] = []
    engine = await EngineProcess.start("test/tiny", tiny, OPTIONS, note_loading=told.append)
    await engine.stop()
    assert engine.ready
    assert [one.total_bytes for one in told] == [engine.ready.weights_bytes] * len(told)
    assert told[-1].share == 1.0


async def test_it_says_how_it_is_while_it_works_too(engine: EngineProcess) -> None:
    async with ask(engine) as first, ask(engine) as second:
        await asyncio.gather(first.admitted(), second.admitted())
        await eventually(lambda: engine.vitals is not None and engine.vitals.running == 2)
        assert engine.vitals
        assert engine.vitals.kv_bytes
        assert engine.vitals.steps
    await eventually(lambda: engine.vitals is not None and engine.vitals.running == 0)
    assert engine.ready
    assert engine.vitals.active_bytes >= engine.ready.weights_bytes


@pytest.mark.skipif(find_openblas() is None, reason="no OpenBLAS on this machine")
async def test_openblas_is_used_where_it_is_installed(engine: EngineProcess) -> None:
    assert engine.ready
    assert engine.ready.has_fast_blas


async def test_an_answer_comes_with_the_engine_s_record(engine: EngineProcess) -> None:
    stream = ask(engine, 10)
    assert len(await read(stream)) == 10
    assert stream.ended
    assert stream.ended.reason == "length"
    assert stream.ended.stamps.output_tokens == stream.received_tokens == 10
    assert stream.ended.stamps.prompt_tokens == len(PROMPT)
    assert engine.active_sequences == 0


async def test_answers_that_run_together_do_not_mix(engine: EngineProcess) -> None:
    prompts = [PROMPT[: 20 + at] for at in range(8)]
    alone = [await read(ask(engine, 20, prompt)) for prompt in prompts]
    together = await asyncio.gather(*(read(ask(engine, 20, prompt)) for prompt in prompts))
    assert together == alone
    assert len({tuple(answer) for answer in alone}) > 1


async def test_a_seed_repeats_its_answer(engine: EngineProcess) -> None:
    seeded = SamplingParameters(1.0, seed=-(2**63))
    first, second, other = await asyncio.gather(
        read(ask(engine, 20, sampling=seeded)),
        read(ask(engine, 20, sampling=seeded)),
        read(ask(engine, 20, sampling=SamplingParameters(1.0, seed=5))),
    )
    assert first == second != other


async def test_leaving_a_stream_early_frees_its_row(engine: EngineProcess) -> None:
    async with ask(engine) as stream:
        async for _ in stream:
            break
        assert engine.active_sequences == 1
    await eventually(lambda: engine.active_sequences == 0)
    await runs_alone(engine)


async def test_leaving_before_the_engine_has_taken_the_sequence_frees_its_place(
    engine: EngineProcess,
) -> None:
    running = [ask(engine) for _ in range(4)]
    await asyncio.gather(*(stream.admitted() for stream in running))
    async with ask(engine) as waiting:
        assert waiting.admitted_at_ns is None
    for stream in running:
        async with stream:
            pass
    await runs_alone(engine)


async def test_cancelling_the_reader_frees_its_row(engine: EngineProcess) -> None:
    stream = ask(engine)
    reader = asyncio.create_task(read(stream))
    await eventually(lambda: stream.received_tokens > 0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await eventually(lambda: engine.active_sequences == 0)
    await runs_alone(engine)


async def test_a_slow_reader_gets_everything_in_longer_lists(engine: EngineProcess) -> None:
    whole = await read(ask(engine, 600))
    async with ask(engine, 600) as stream:
        first = await anext(stream)
        await eventually(lambda: stream.ended is not None)
        rest = await anext(stream)
        assert first + rest == whole
        assert len(rest) > 1
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_beyond_what_may_wait_a_request_is_refused_and_the_others_are_served(
    engine: EngineProcess,
) -> None:
    streams = [ask(engine, 50) for _ in range(8)]
    with pytest.raises(Overloaded, match="8 requests") as refused:
        ask(engine)
    assert refused.value.retry_after_s
    answers = await asyncio.gather(*map(read, streams))
    assert [len(answer) for answer in answers] == [50] * 8
    assert len(await read(ask(engine, 2))) == 2


async def test_a_request_that_cannot_be_computed_fails_alone(
    engine: EngineProcess, caplog: pytest.LogCaptureFixture
) -> None:
    other = ask(engine, 100)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(GenerationFailed, match="ValueError"),
    ):
        await ask(engine, prompt=[]).admitted()
    assert len(await read(other)) == 100
    # The engine's own words, from its standard error.
    await eventually(lambda: "has an empty prompt" in caplog.text)


async def test_a_request_that_cannot_be_sent_leaves_no_trace(engine: EngineProcess) -> None:
    with pytest.raises(OverflowError):
        ask(engine, sampling=SamplingParameters(1.0, seed=2**70))
    assert engine.active_sequences == 0


async def test_an_expired_stream_ends_with_the_given_error_and_frees_its_row(
    engine: EngineProcess,
) -> None:
    async with ask(engine) as stream:
        await anext(stream)
        stream.expire(Overloaded("time is up"))
        with pytest.raises(Overloaded, match="time is up"):
            await read(stream)
    await eventually(lambda: engine.active_sequences == 0)
    await runs_alone(engine)


async def test_ctrl_c_in_the_terminal_does_not_end_it(engine: EngineProcess) -> None:
    async with ask(engine) as stream:
        await anext(stream)
        kill(engine.pid, signal.SIGINT)
        received = stream.received_tokens
        await eventually(lambda: stream.received_tokens > received + 50)
    assert engine.is_alive


async def test_it_can_be_heard_while_it_has_nothing_to_do(engine: EngineProcess) -> None:
    lived_s = engine.lived_s
    await eventually(lambda: engine.lived_s > lived_s)
    assert not engine.is_stalled


def owner(number: int) -> TraceContext:
    return TraceContext(number, number, 1)


async def test_a_sequence_knows_the_first_eight_that_it_waited_behind(model_dir: Path) -> None:
    async with started(model_dir / "test" / "tiny", max_batch=1, max_waiting=20) as engine:
        streams = [
            engine.generate(Submit(0, PROMPT, 2, [], SamplingParameters()), owner=owner(number))
            for number in range(12)
        ]
        for stream in streams:
            await read(stream)
        behind = [[one.trace_id for one in stream.waited_behind] for stream in streams]
        assert behind == [list(range(min(number, 8))) for number in range(12)]
        late = engine.generate(Submit(0, PROMPT, 2, [], SamplingParameters()), owner=owner(99))
        await read(late)
        assert late.waited_behind == ()


async def test_tokens_that_come_faster_than_anybody_reads_come_together(
    engine: EngineProcess,
) -> None:
    loop = asyncio.get_running_loop()
    async with ask(engine, 60) as stream:
        began_s, pieces = loop.time(), [tokens async for tokens in stream]
    assert sum(map(len, pieces)) == 60
    assert len(pieces) <= (loop.time() - began_s) / READERS_WAKE_S + 2


@pytest.mark.parametrize("pooled_bytes", [None, 64 * 1024])
async def test_no_more_of_freed_buffers_is_kept_than_is_said(
    model_dir: Path, pooled_bytes: int | None
) -> None:
    async with started(model_dir / "test" / "tiny", pooled_bytes=pooled_bytes) as engine:
        await read(ask(engine, 5, list(range(40, 500))))
        before = engine.vitals
        await eventually(lambda: engine.vitals is not before)
        assert engine.vitals is not None
        is_within = engine.vitals.pooled_bytes <= 64 * 1024
        assert is_within is (pooled_bytes is not None)


async def test_it_does_with_the_memory_that_it_is_told_it_has(model_dir: Path) -> None:
    mib = 2**20
    async with started(model_dir / "test" / "tiny", prefix_cache_bytes=mib, shared_bytes=mib) as it:
        long = list(range(40, 500))
        await read(ask(it, 5, long))
        await eventually(lambda: bool(it.vitals and it.vitals.prefix_cache_bytes))

        it.set_room(0, mib // 4)
        await eventually(lambda: bool(it.vitals and not it.vitals.prefix_cache_bytes))
        assert it.ready
        assert it.ready.kv_budget_bytes == mib // 4
        with pytest.raises(MemoryExceeded, match=r"has 0\.2 MiB for them") as refused:
            ask(it, 5, long * 2)
        assert refused.value.message.endswith("or raise MLX_SERVER_MEMORY_BUDGET_MIB.")
        stream = ask(it, 5, list(range(40, 80)))
        assert len(await read(stream)) == 5
        assert stream.ended
        assert stream.ended.stamps.cache_miss_reason == "no_room"
