"""Vectors from a real engine process, and what happens when they are not awaited or can't be made."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlx_manager.errors import EngineFailed, GenerationFailed, Overloaded
from mlx_manager.mlx_server.workers.process import EngineProcess
from tests.support.encoders import Kind, expected, make_encoder
from tests.support.running import eventually
from tests.workers.processes import OPTIONS, kill

KIND = Kind("xlm-roberta")
IDS = [0, 9, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("models") / "encoder", KIND)


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[EngineProcess]:
    options = replace(OPTIONS, max_batch=1, max_waiting=2)
    engine = await EngineProcess.start("test/encoder", folder, options, kind="embeddings")
    yield engine
    await engine.stop()


async def test_vectors_are_in_the_order_of_their_inputs(
    engine: EngineProcess, folder: Path
) -> None:
    given = [[0, *range(4, 5 + index % 50), 2] for index in range(200)]
    async with engine.embed(given, None) as stream:
        vectors = await stream.all()
    for ids, vector in zip(given, vectors, strict=True):
        assert np.abs(np.array(vector) - expected(folder, ids, KIND)).max() < 1e-5
    assert stream.ended is not None
    assert stream.ended.stamps.batches > 1
    assert engine.active_sequences == 0


async def test_more_than_may_wait_are_refused_and_leaving_makes_room(engine: EngineProcess) -> None:
    kill(engine.pid, signal.SIGSTOP)
    streams = [engine.embed([IDS], None) for _ in range(3)]
    with pytest.raises(Overloaded, match="3 requests"):
        engine.embed([IDS], None)
    for stream in streams:
        stream.close()
    kill(engine.pid, signal.SIGCONT)
    await eventually(lambda: engine.active_sequences == 0)
    assert [stream.ended and stream.ended.reason for stream in streams] == ["cancelled"] * 3
    async with engine.embed([IDS], None) as stream:
        assert len(await stream.all()) == 1


async def test_a_killed_process_fails_all_that_wait(engine: EngineProcess) -> None:
    kill(engine.pid, signal.SIGSTOP)
    waiting = [asyncio.create_task(engine.embed([IDS], None).all()) for _ in range(3)]
    await asyncio.sleep(0)
    kill(engine.pid)
    errors = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)
    assert [type(error) for error in errors] == [EngineFailed] * 3
    with pytest.raises(EngineFailed):
        engine.embed([IDS], None)


async def test_what_cannot_be_computed_fails_alone(engine: EngineProcess) -> None:
    async with engine.embed([[]], None) as stream:  # which no request gets this far with
        with pytest.raises(GenerationFailed):
            await stream.all()
    async with engine.embed([IDS], 3) as stream:
        assert [len(vector) for vector in await stream.all()] == [3]


async def test_one_that_cannot_be_computed_costs_those_beside_it_nothing(
    engine: EngineProcess, folder: Path
) -> None:
    kill(engine.pid, signal.SIGSTOP)  # so that all are there before the first pass
    given = [IDS, [0, 2**63, 2], [0, 9, 10, 2]]
    waiting = [asyncio.create_task(engine.embed([ids], None).all()) for ids in given]
    await asyncio.sleep(0)
    kill(engine.pid, signal.SIGCONT)
    first, poison, last = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(poison, GenerationFailed)
    for ids, vectors in ((given[0], first), (given[2], last)):
        assert not isinstance(vectors, BaseException)
        assert np.abs(np.array(vectors[0]) - expected(folder, ids, KIND)).max() < 1e-5
