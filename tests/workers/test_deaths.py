"""However an engine process ends, those who wait for it are told, and nothing of it stays."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from mlx_manager.errors import EngineFailed, ModelLoadFailed
from mlx_manager.mlx_server.workers.process import EngineProcess
from mlx_manager.mlx_server.workers.stream import TokenStream
from tests.support.running import eventually, wait_until
from tests.workers.processes import (
    OPTIONS,
    ask,
    engine_pids,
    has_gone,
    kill,
    leaves_nothing_behind,
    read,
    runs,
    started,
)
from tools.chaos.inside import sitecustomize
from tools.chaos.inside.sitecustomize import WAIT

FAULTS = Path(sitecustomize.__file__).parent
# A machine that is busy with other tests needs some of it.
AT_ONCE_S = 5.0


async def failures(streams: list[TokenStream]) -> list[object]:
    return list(await asyncio.gather(*map(read, streams), return_exceptions=True))


async def test_a_killed_process_fails_all_its_streams_at_once(tiny: Path) -> None:
    async with started(tiny) as engine:
        streams = [ask(engine) for _ in range(8)]  # half of them wait for a row
        await asyncio.gather(*(stream.admitted() for stream in streams[:4]))
        readers = asyncio.create_task(failures(streams))
        kill(engine.pid)
        errors = await asyncio.wait_for(readers, AT_ONCE_S)
        assert [type(error) for error in errors] == [EngineFailed] * 8
        assert "killed by signal 9" in str(errors[0])
        assert not engine.is_alive
        assert engine.active_sequences == 0
        assert await engine.gone() == "was killed by signal 9"
        with pytest.raises(EngineFailed):
            ask(engine)
        await has_gone(engine.pid)


async def test_a_process_that_breaks_outside_python_says_where(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(tiny) as engine:
        kill(engine.pid, signal.SIGSEGV)
        assert await engine.gone() == "was killed by signal 11"
    assert "engine says: Fatal Python error: Segmentation fault" in caplog.text
    assert "worker.py" in caplog.text


async def test_a_process_that_stops_speaking_is_ended(tiny: Path) -> None:
    async with started(tiny, stall_timeout_s=4.0) as engine:
        streams = [ask(engine) for _ in range(3)]
        await asyncio.gather(*(stream.admitted() for stream in streams))
        assert not engine.is_stalled
        kill(engine.pid, signal.SIGSTOP)
        errors = await asyncio.wait_for(failures(streams), 60)
        assert [type(error) for error in errors] == [EngineFailed] * 3
        assert "stalled for 4 s" in str(errors[0])
        assert engine.is_stalled
        await has_gone(engine.pid)


async def test_a_process_that_speaks_and_gets_nothing_done_is_ended_and_says_where_it_is(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTS), prepend=os.pathsep)
    async with started(tiny, stall_timeout_s=2.5) as engine:
        async with ask(engine) as stream:
            await anext(stream)
            await asyncio.sleep(5)
            assert not engine.is_stalled, "it has work, which gets on"
        [error] = await asyncio.wait_for(failures([ask(engine, prompt=[40, *WAIT, 41])]), 60)
        assert isinstance(error, EngineFailed)
        assert "got nothing done for 2.5 s" in str(error)
        await has_gone(engine.pid)
    assert "engine stalled: test/model got nothing done for 2.5 s; ending it" in caplog.text
    assert re.search(r'engine says: +File ".*worker.py", line \d+ in serve', caplog.text)


async def test_stopping_leaves_no_process_task_or_descriptor(tiny: Path) -> None:
    async def start_and_stop() -> AsyncIterator[None]:
        engine = await EngineProcess.start("test/model", tiny, OPTIONS)
        streams = [ask(engine) for _ in range(2)]
        await streams[0].admitted()
        yield
        await engine.stop()
        assert [type(error) for error in await failures(streams)] == [EngineFailed] * 2
        assert engine.pid
        assert not runs(engine.pid)
        await engine.stop()  # once more does no harm

    await leaves_nothing_behind(start_and_stop)


async def test_stopping_ends_a_process_that_does_not_listen(tiny: Path) -> None:
    async with started(tiny) as engine:
        kill(engine.pid, signal.SIGSTOP)
    assert engine.pid
    assert not runs(engine.pid)


def broken_copy(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def unsupported_copy(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "abacus"}))
    return folder


async def test_a_model_that_cannot_be_loaded_says_why_and_leaves_nothing(
    tiny: Path, tmp_path: Path
) -> None:
    paths = {
        "safetensors": broken_copy(tiny, tmp_path / "broken"),
        "abacus": unsupported_copy(tiny, tmp_path / "unsupported"),
        "nowhere": tmp_path / "nowhere",
    }

    async def load_them() -> AsyncIterator[None]:
        loads = [EngineProcess.start("test/model", path, OPTIONS) for path in paths.values()]
        errors = await asyncio.gather(*loads, return_exceptions=True)
        for error, reason in zip(errors, paths, strict=True):
            assert isinstance(error, ModelLoadFailed)
            assert "test/model could not be loaded" in error.message
            assert reason in error.message
        yield

    await leaves_nothing_behind(load_them)


async def test_a_load_that_takes_too_long_is_given_up(tiny: Path) -> None:
    async def load() -> AsyncIterator[None]:
        with pytest.raises(ModelLoadFailed, match=r"within 0\.1 s.*MLX_SERVER_LOAD_TIMEOUT_S"):
            await EngineProcess.start("test/model", tiny, replace(OPTIONS, load_timeout_s=0.1))
        yield

    await leaves_nothing_behind(load)


async def test_a_load_that_nobody_waits_for_is_given_up(tiny: Path) -> None:
    async def load() -> AsyncIterator[None]:
        before = engine_pids()
        loading = asyncio.create_task(EngineProcess.start("test/model", tiny, OPTIONS))
        await eventually(lambda: engine_pids() > before)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        yield

    await leaves_nothing_behind(load)


async def test_a_process_that_dies_while_loading_says_how(tiny: Path) -> None:
    before = engine_pids()
    loading = asyncio.create_task(EngineProcess.start("test/model", tiny, OPTIONS))
    await eventually(lambda: engine_pids() > before)
    [pid] = engine_pids() - before
    kill(pid)
    with pytest.raises(ModelLoadFailed, match="its process was killed by signal 9"):
        await loading


async def test_a_process_that_cannot_be_started_is_a_failed_load() -> None:
    async def load() -> AsyncIterator[None]:
        too_long_for_a_command_line = Path("/" + "x" * 200_000)
        with pytest.raises(ModelLoadFailed, match="could not be started"):
            await EngineProcess.start("test/model", too_long_for_a_command_line, OPTIONS)
        yield

    await leaves_nothing_behind(load)


async def test_whatever_a_process_prints_does_not_block_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Python says a line about each of these: one longer than a reader takes, and more than a pipe holds."""
    flood = ",".join(["y" * 80_000, *(f"x{number}" for number in range(6000)), "last"])
    monkeypatch.setenv("PYTHONWARNINGS", flood)
    async with started(tiny) as engine:
        assert len(await read(ask(engine, 5))) == 5
        await eventually(lambda: "'last'" in caplog.text)


PARENT = """
import asyncio, sys
from pathlib import Path
from mlx_manager.mlx_server.engine.messages import SamplingParameters, Submit
from mlx_manager.mlx_server.workers.process import EngineOptions, EngineProcess

async def main():
    engine = await EngineProcess.start("test/model", Path(sys.argv[1]), EngineOptions())
    stream = engine.generate(Submit(0, [1, 2, 3], 1_000_000, [], SamplingParameters()))
    await stream.admitted()
    print(engine.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_the_death_of_the_api_process_ends_a_working_engine(tiny: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tiny)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert runs(pid)
        parent.kill()
        parent.wait()
        wait_until(lambda: not runs(pid))


def test_a_process_lives_and_dies_under_uvloop_too(tiny: Path) -> None:
    """The event loop of the server that people run."""
    before = engine_pids()

    async def live_and_die() -> None:
        async with started(tiny) as engine:
            assert len(await read(ask(engine, 20))) == 20
            streams = [ask(engine) for _ in range(3)]
            await streams[0].admitted()
            kill(engine.pid)
            assert [type(error) for error in await failures(streams)] == [EngineFailed] * 3

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live_and_die())
    assert engine_pids() <= before
