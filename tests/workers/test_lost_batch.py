"""An exception in a step costs an engine its batch, and none of the requests in it but the one that it comes from."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mlx_manager.errors import RequestBreaksBatch
from mlx_manager.mlx_server.engine.messages import SamplingParameters
from mlx_manager.mlx_server.workers.recovery import Recovery
from mlx_manager.mlx_server.workers.watch import NoWatch
from tests.workers.processes import ask, read, started

TOKENS = 300
SAMPLINGS = [
    SamplingParameters(),
    SamplingParameters(temperature=1.0, seed=3),
    SamplingParameters(frequency_penalty=0.5),
]
# No index: MLX raises when the first token is drawn, in the step of all rows.
POISON = SamplingParameters(logit_bias=((2**63, 1.0),))


async def test_the_others_of_a_batch_go_on_and_the_one_that_breaks_it_fails_alone(
    tiny: Path,
) -> None:
    async with started(tiny) as engine:
        engine.recovery = Recovery("test/model", 2, NoWatch())
        whole = [await read(ask(engine, TOKENS, sampling=one)) for one in SAMPLINGS]
        others = [ask(engine, TOKENS, sampling=one) for one in SAMPLINGS]
        await asyncio.gather(*(stream.prompt_read() for stream in others))
        reading = asyncio.gather(*map(read, others))
        poison, waiting = ask(engine, sampling=POISON), ask(engine, 5)
        with pytest.raises(RequestBreaksBatch, match="lost its batch to RuntimeError"):
            await read(poison)
        assert await reading == whole
        assert len(await read(waiting)) == 5
        for stream in others:
            assert {one.how for one in stream.resumptions} == {"lost its batch to RuntimeError"}
            assert all(one.resumed_ns for one in stream.resumptions)
        [one] = poison.resumptions
        assert (one.attempts, one.resumed_ns) == (2, None)
        assert engine.is_alive


async def test_two_that_break_it_cost_no_other_that_reads_its_prompt_beside_them(
    tiny: Path,
) -> None:
    async with started(tiny) as engine:
        engine.recovery = Recovery("test/model", 2, NoWatch())
        prompts = [list(range(40 + start, 240 + start)) for start in range(2)]
        whole = [await read(ask(engine, 5, prompt)) for prompt in prompts]
        poisons = [ask(engine, sampling=POISON) for _ in range(2)]
        others = [ask(engine, 5, prompt) for prompt in prompts]
        failures = await asyncio.gather(*map(read, poisons), return_exceptions=True)
        assert [type(failure) for failure in failures] == [RequestBreaksBatch] * 2
        assert await asyncio.gather(*map(read, others)) == whole
