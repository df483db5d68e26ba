"""An engine that ends under its requests costs none of them its answer, and one that ends each time is left alone."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import AsyncOpenAI

from mlx_manager.mlx_server.app import create_app
from mlx_manager.observability.setup import TelemetryOptions, configure
from mlx_manager.traces.explain import explain
from tests.conftest import ENDLESS_TOKENS
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans
from tools.chaos.inside import sitecustomize
from tools.chaos.inside.sitecustomize import ABORT, HANG, RAISE

MODEL = "test/tiny"
STREAMS = 16
# So long that the first of sixteen streams has not ended before the last has begun, however busy the machine is.
TOKENS = 800
FAULTS = Path(sitecustomize.__file__).parent
STALL_S = 3.0
# In the middle: the last token of a prompt is computed by itself.
POISON = [40, 41, *ABORT, 42, 43]
STICKY = [40, 41, *HANG, 42, 43]
BREAKING = [40, 41, *RAISE, 42, 43]


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A server whose engines abort or hang at certain prompts."""
    folder = tmp_path_factory.mktemp("frail")
    # Before the server, whose trace store is only fed when there are spans.
    configure(TelemetryOptions("mlx-test"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FAULTS), prepend=os.pathsep)
        settings = settings_for(folder, model_dir, stall_timeout_s=STALL_S, crash_pause_s=2.0)
        with running(create_app(settings)) as server:
            yield server


@pytest.fixture
async def client(frail: RunningServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{frail.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        await client.completions.create(model=MODEL, prompt="Hi", max_tokens=1)
        yield client


def how_to_draw(number: int) -> dict[str, Any]:
    """Each kind of state that a sampler can have, by turns."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1, "seed": number},
        {"temperature": 0, "frequency_penalty": 0.5, "presence_penalty": 0.5},
        {"temperature": 1, "seed": number, "repetition_penalty": 1.2},
    ]
    return kinds[number % len(kinds)]


class Listener:
    """One client and what it has heard so far."""

    def __init__(self, client: AsyncOpenAI, number: int) -> None:
        self._client = client
        self._number = number
        self.pieces = list[str]()
        self.tokens = list[str]()
        self.usage: Any = None
        self.id = ""

    async def listen(self) -> None:
        stream = await self._client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"Question {self._number}"}],
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=self._number % 3 == 0,
            extra_body=how_to_draw(self._number) | {"ignore_eos": True},
        )
        async for chunk in stream:
            self.id, self.usage = chunk.id, chunk.usage or self.usage
            for choice in chunk.choices:
                self.pieces.append(choice.delta.content or "")
                logprobs = choice.logprobs.content if choice.logprobs else None
                self.tokens += [one.token for one in logprobs or ()]

    @property
    def heard(self) -> tuple[str, list[str], int, int]:
        return (
            "".join(self.pieces),
            self.tokens,
            self.usage.prompt_tokens,
            self.usage.completion_tokens,
        )


async def ask_all(client: AsyncOpenAI, server: RunningServer, kills: int) -> list[Listener]:
    """Sixteen streams at once, whose engine is killed so many times while all of them are in their answers."""
    listeners = [Listener(client, number) for number in range(STREAMS)]
    killed = set[int | None]()
    listening = asyncio.gather(*(listener.listen() for listener in listeners))
    for kill_number in range(kills):
        await eventually(partial(have_made, server, 60 * (1 + kill_number), killed))
        killed.add(kill(server))
    await listening
    return listeners


def have_made(server: RunningServer, tokens: int, killed: set[int | None]) -> bool:
    """Whether all sixteen are in their answers, with so many tokens, in an engine that wasn't killed."""
    engine, made = server.resident(MODEL).engine, made_tokens(server)
    is_fresh = engine is not None and engine.pid not in killed
    return is_fresh and len(made) == STREAMS and min(made) > tokens


def kill(server: RunningServer) -> int:
    """Kill the engine, and say which process that was."""
    engine = server.resident(MODEL).engine
    assert engine is not None
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    return engine.pid


async def test_sixteen_streams_go_on_when_their_engine_is_killed_twice(
    frail: RunningServer, client: AsyncOpenAI, spans: Spans
) -> None:
    whole = await ask_all(client, frail, kills=0)
    broken = await ask_all(client, frail, kills=2)
    assert {len(one.heard[0]) > TOKENS / 2 for one in whole} == {True}
    different = [
        one.heard for one, other in zip(whole, broken, strict=True) if one.heard != other.heard
    ]
    assert different == []
    await frail.close_books()
    for one in broken:
        await has_trace(spans, one.id)


async def test_each_of_several_choices_goes_on_and_is_counted_once(
    frail: RunningServer, client: AsyncOpenAI
) -> None:
    async def ask() -> tuple[list[str], Any]:
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Question"}],
            max_tokens=TOKENS,
            n=3,
            seed=5,
            extra_body={"ignore_eos": True},
        )
        return [one.message.content or "" for one in answer.choices], answer.usage

    whole, usage = await ask()
    asking = asyncio.create_task(ask())
    await eventually(lambda: len(made := made_tokens(frail)) == 3 and min(made) > 60)
    kill(frail)
    broken, broken_usage = await asking

    assert len(set(whole)) == 3
    assert broken == whole
    assert (broken_usage.prompt_tokens, broken_usage.completion_tokens) == (
        usage.prompt_tokens,
        3 * TOKENS,
    )


def made_tokens(server: RunningServer) -> list[int]:
    """How many tokens each sequence of the engine has."""
    engine = server.resident(MODEL).engine
    return [one.received_tokens for one in engine._streams.values()] if engine else []


async def has_trace(spans: Spans, answer_id: str) -> None:
    """The trace of an answer tells of both kills, each behind tokens that were there."""
    chat, *phases = await spans.of_answer(answer_id)
    attributes = chat.attributes or {}
    assert attributes["mlx.resumes"] == 2
    assert attributes["gen_ai.usage.output_tokens"] == TOKENS
    resumes = [one for one in phases if one.name == "resume"]
    assert len(resumes) == 2
    for one in resumes:
        found = one.attributes or {}
        assert found["mlx.resume.cause"] == "was killed by signal 9"
        assert found["mlx.resume.attempts"] == 1
        assert 0 < int(str(found["mlx.resume.after_token"])) < TOKENS


async def test_explain_says_that_the_engine_was_replaced(
    frail: RunningServer, client: AsyncOpenAI
) -> None:
    async with httpx.AsyncClient(base_url=frail.url, timeout=120) as http:
        asking = asyncio.create_task(
            http.post("/v1/completions", json=asked([40, 41], max_tokens=800, temperature=0))
        )
        await eventually(lambda: len(made := made_tokens(frail)) == 1 and min(made) > 60)
        kill(frail)
        answer = await asking
    await frail.close_books()
    store = frail.state.traces
    assert store
    assert store.flush(10)
    trace = store.get_trace(answer.headers["X-Trace-ID"])
    assert trace
    [sentence] = [one.sentence for one in explain(trace) if one.rule == "resume"]
    assert sentence.startswith("The engine process was killed by signal 9 after ")
    assert "; the request went on " in sentence


async def complete(client: AsyncOpenAI, prompt: list[int], **more: Any) -> str:
    asked: dict[str, Any] = {"max_tokens": 400, "temperature": 0} | more
    answer = await client.completions.create(model=MODEL, prompt=prompt, **asked)
    return str(answer.choices[0].text)


async def test_a_request_that_ends_its_engine_each_time_is_given_up_and_costs_no_other_its_answer(
    frail: RunningServer, client: AsyncOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [list(range(40 + number, 60 + number)) for number in range(6)]
    alone = [await complete(client, prompt) for prompt in prompts]
    others = [asyncio.create_task(complete(client, prompt)) for prompt in prompts]
    await eventually(lambda: frail.active(MODEL) == len(others))
    with pytest.raises(sdk.InternalServerError) as failed:
        await complete(client, POISON)
    assert failed.value.status_code == 500
    assert failed.value.code == "request_ends_engine"
    assert failed.value.response.headers["X-Should-Retry"] == "false"
    assert "each of the 3 times" in failed.value.message
    assert await asyncio.gather(*others) == alone
    assert caplog.text.count("request given up") == 1


async def test_a_request_that_breaks_its_batch_each_time_is_given_up_and_the_others_go_on_in_the_same_engine(
    frail: RunningServer, client: AsyncOpenAI, spans: Spans
) -> None:
    engine = frail.resident(MODEL).engine
    prompts = [list(range(40 + number, 60 + number)) for number in range(6)]
    long = partial(complete, client, max_tokens=TOKENS)
    alone = [await long(prompt) for prompt in prompts]
    others = [asyncio.create_task(long(prompt)) for prompt in prompts[1:]]
    async with httpx.AsyncClient(base_url=frail.url, timeout=120) as http:
        body = asked(prompts[0], max_tokens=TOKENS, temperature=0)
        first = asyncio.create_task(http.post("/v1/completions", json=body))
        await eventually(lambda: len(made := made_tokens(frail)) == 6 and min(made) > 0)
        with pytest.raises(sdk.InternalServerError) as failed:
            await complete(client, BREAKING)
        answer = await first
    assert failed.value.code == "request_breaks_batch"
    assert failed.value.response.headers["X-Should-Retry"] == "false"
    assert "each of the 3 times" in failed.value.message
    assert await asyncio.gather(*others) == alone[1:]
    assert answer.json()["choices"][0]["text"] == alone[0]
    assert frail.resident(MODEL).engine is engine
    assert engine
    assert engine.is_alive

    await frail.close_books()
    chat, *phases = await spans.of_answer(answer.json()["id"])
    assert 1 <= int(str((chat.attributes or {})["mlx.resumes"])) <= 3
    causes = {(one.attributes or {})["mlx.resume.cause"] for one in phases if one.name == "resume"}
    assert causes == {"lost its batch to RuntimeError"}


async def test_requests_that_come_in_between_are_answered_too(
    frail: RunningServer, client: AsyncOpenAI
) -> None:
    poison = asyncio.create_task(complete(client, POISON))
    answers = list[str]()
    while not poison.done():
        answers.append(await complete(client, [50, 51, 52], max_tokens=3))
    assert len(set(answers)) == 1
    with pytest.raises(sdk.InternalServerError):
        await poison


async def test_a_request_that_hangs_its_engine_is_given_up_too_and_the_log_says_where_it_hung(
    frail: RunningServer, client: AsyncOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    sticky = asyncio.create_task(complete(client, STICKY))
    await asyncio.sleep(STALL_S / 2)
    other = asyncio.create_task(complete(client, [50, 51, 52], max_tokens=5))
    with pytest.raises(sdk.InternalServerError, match="stalled for 3 s"):
        await sticky
    assert await other
    assert f"engine stalled: {MODEL} stalled for 3 s; ending it" in caplog.text
    assert re.search(r'engine says: +File ".*sitecustomize.py", line \d+ in faulty', caplog.text)


async def test_a_model_whose_engines_only_end_is_left_alone_for_a_while(
    frail: RunningServer, client: AsyncOpenAI
) -> None:
    """Nobody but the poison asks, so none of the fresh engines does any work."""
    async with httpx.AsyncClient(base_url=frail.url, timeout=120) as http:
        kill(frail)  # one that has worked
        code = await code_of_poison(http)
        while code != "model_unavailable":
            assert code == "request_ends_engine"
            code = await code_of_poison(http)
        refused = await http.post("/v1/completions", json=asked([40, 41]))
        assert refused.status_code == 503
        assert 1 <= int(refused.headers["Retry-After"]) <= 2
        assert "ended before they had done any work" in refused.json()["error"]["message"]
        report = await http.get("/health")
        assert report.status_code == 503
        assert report.json()["models"][0]["circuit"] == "open"

        end_s = time.monotonic() + 60
        while not (again := await http.post("/v1/completions", json=asked([40, 41]))).is_success:
            assert time.monotonic() < end_s
            await asyncio.sleep(float(again.headers["Retry-After"]) / 4)
        report = await http.get("/health")
        assert (report.status_code, report.json()["models"][0]["circuit"]) == (200, "closed")


def asked(prompt: list[int], **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": 4} | more


async def code_of_poison(http: httpx.AsyncClient) -> str:
    response = await http.post("/v1/completions", json=asked(POISON))
    return str(response.json()["error"]["code"])


async def test_without_resuming_a_killed_engine_is_a_clear_error(
    tmp_path: Path, model_dir: Path
) -> None:
    app = create_app(settings_for(tmp_path, model_dir, max_resumes=0))
    with running(app) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            await http.post("/v1/completions", json=asked([40]))
            endless = asked([40], max_tokens=ENDLESS_TOKENS, temperature=0)
            whole = asyncio.create_task(http.post("/v1/completions", json=endless))
            await eventually(lambda: server.active(MODEL) == 1)
            kill(server)
            refused = await whole
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "engine_failed"
            assert refused.headers["Retry-After"] == "1"
            assert (await http.post("/v1/completions", json=asked([40]))).is_success
