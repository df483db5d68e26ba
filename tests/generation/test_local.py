"""The story of a request, told by real models in real engine processes."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing

import pytest

from mlx_manager.chat.events import Finished, Started, TextDelta, Timeline, collect
from mlx_manager.chat.request import (
    AnswerFormat,
    ChatRequest,
    Conversation,
    Message,
    Origin,
    RawPrompt,
    Sampling,
    Tool,
)
from mlx_manager.errors import (
    InvalidRequest,
    ModelNotFound,
    PromptTooLong,
    RequestTimeout,
)
from mlx_manager.mlx_server.generation.local import LocalBackend, is_quick
from mlx_manager.mlx_server.pool.pool import ModelPool
from tests.support.running import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

TINY, SHORT = "test/tiny", "test/short"
ORIGIN = Origin("request-1", "/v1/completions")


def request(
    prompt: str | tuple[int, ...] = "def main", model: str = TINY, **changes: object
) -> ChatRequest:
    values: dict[str, object] = {
        "input": RawPrompt(prompt),
        "sampling": Sampling(temperature=1.0, seed=4),
        "max_tokens": 40,
    }
    return ChatRequest(model, origin=ORIGIN, **(values | changes))  # type: ignore[arg-type]


async def watch(backend: LocalBackend, asked: ChatRequest) -> tuple[Timeline, str, Finished]:
    """Return the timeline, the text and the end of an answer."""
    events = [event async for event in backend.stream(asked)]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    return events[0].timeline, text, events[-1]


def active(pool: ModelPool) -> int:
    engines = [resident.engine for resident in pool.residents]
    return sum(engine.active_sequences for engine in engines if engine)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (request(), True),
        (request("x" * 5000), False),
        (request(format=AnswerFormat("regex", "a", "structured_outputs.regex")), False),
        (request(input=Conversation((Message("user", "Hi"),))), True),
        (request(input=Conversation((Message("user", "Hi"),), tools=(Tool("wait"),))), False),
    ],
)
async def test_what_a_client_can_make_long_is_never_prepared_on_the_event_loop(
    asked: ChatRequest, expected: bool
) -> None:
    assert is_quick(asked) is expected


async def test_others_go_on_while_a_long_prompt_is_encoded(backend: LocalBackend) -> None:
    turns = 0
    asked = asyncio.create_task(watch(backend, request("Read me. " * 200_000)))
    while not asked.done():
        await asyncio.sleep(0.001)
        turns += 1
    with pytest.raises(PromptTooLong):
        await asked
    # On the event loop nobody else would have had a turn in all that time.
    assert turns > 20


async def test_the_timeline_of_an_answer_is_complete_and_in_order(backend: LocalBackend) -> None:
    timeline, _, finished = await watch(backend, request())
    assert timeline.tokenize
    assert timeline.queued_ns
    assert timeline.admitted_ns
    assert timeline.first_token_ns
    assert timeline.finished_ns
    times = [timeline.tokenize.start_ns, timeline.tokenize.end_ns or 0, timeline.queued_ns]
    engine_times = [timeline.admitted_ns, timeline.first_token_ns, timeline.finished_ns]
    assert times == sorted(times)
    assert engine_times == sorted(engine_times)
    assert finished.usage.input_tokens == timeline.prompt_tokens > 0
    assert finished.usage.output_tokens == timeline.output_tokens > 0
    assert timeline.batch_width_mean == timeline.batch_width_max == 1
    assert timeline.prefill_chunks == 1
    assert timeline.longest_gap_ns > 0


async def test_the_same_seed_gives_the_same_text(backend: LocalBackend) -> None:
    first, second = [await collect(backend.stream(request())) for _ in range(2)]
    assert first == second
    assert first.text


async def test_a_stop_string_ends_the_answer_and_frees_the_row(
    backend: LocalBackend, pool: ModelPool
) -> None:
    whole = await collect(backend.stream(request()))
    stop = whole.text[10:13]
    answer = await collect(backend.stream(request(max_tokens=None, stop=(stop,))))
    assert answer.text == whole.text[: whole.text.find(stop)]
    assert answer.reason == "stop"
    assert active(pool) == 0


async def test_a_client_that_leaves_frees_its_row_and_its_lease(
    backend: LocalBackend, pool: ModelPool
) -> None:
    async with aclosing(backend.stream(request(max_tokens=None))) as events:
        started = await anext(events)
        assert isinstance(started, Started)
    await eventually(lambda: active(pool) == 0)
    assert [resident.leases for resident in pool.residents] == [0]
    assert started.timeline.admitted_ns
    assert started.timeline.finished_ns


async def test_an_answer_fills_the_context_and_no_more(backend: LocalBackend) -> None:
    for max_tokens in (None, 1000):
        asked = request((5, 6, 7), SHORT, max_tokens=max_tokens, sampling=Sampling(0.0))
        answer = await collect(backend.stream(asked))
        assert (answer.reason, answer.usage.output_tokens) == ("length", 61)


async def test_a_prompt_without_room_for_an_answer_is_refused_with_numbers(
    backend: LocalBackend,
) -> None:
    with pytest.raises(PromptTooLong, match=r"70 tokens; test/short takes 64 .* by 7 or more"):
        await collect(backend.stream(request((5,) * 70, SHORT)))
    assert (await collect(backend.stream(request((5,) * 63, SHORT)))).usage.output_tokens == 1


@pytest.mark.parametrize("prompt", ["", ()])
async def test_an_empty_prompt_is_refused(
    backend: LocalBackend, prompt: str | tuple[int, ...]
) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        await collect(backend.stream(request(prompt)))


@pytest.mark.parametrize("token_id", [-1, 512, 2**40])
async def test_a_token_outside_the_vocabulary_is_refused(
    backend: LocalBackend, token_id: int
) -> None:
    with pytest.raises(InvalidRequest, match=rf"Token id {token_id} .* 512 tokens"):
        await collect(backend.stream(request((1, token_id))))


async def test_text_that_is_no_unicode_is_refused(backend: LocalBackend) -> None:
    with pytest.raises(InvalidRequest):
        await collect(backend.stream(request("half a character: \ud83d")))


async def test_a_model_without_a_template_refuses_to_chat(backend: LocalBackend) -> None:
    chat = ChatRequest("test/plain", Conversation((Message("user", "Hi"),)), ORIGIN)
    with pytest.raises(InvalidRequest, match="no chat template"):
        await collect(backend.stream(chat))


async def test_an_unknown_model_is_not_found(backend: LocalBackend) -> None:
    with pytest.raises(ModelNotFound):
        await collect(backend.stream(request(model="test/none")))


async def test_an_answer_that_takes_too_long_is_ended(
    pool: ModelPool, backend: LocalBackend
) -> None:
    await collect(backend.stream(request(max_tokens=1)))  # loads the model
    hasty = LocalBackend(pool, {"chat": 600.0, "text_completion": 0.3})
    with pytest.raises(RequestTimeout, match=r"0\.3 s"):
        await collect(hasty.stream(request((5,), max_tokens=None, sampling=Sampling(0.0))))
    await eventually(lambda: active(pool) == 0)


async def test_the_answers_to_all_prompts_are_ended_together(
    pool: ModelPool, backend: LocalBackend
) -> None:
    await collect(backend.stream(request(max_tokens=1)))  # loads the model
    hasty = LocalBackend(pool, {"chat": 600.0, "text_completion": 0.3})
    more = tuple(RawPrompt((number,)) for number in range(6, 10))
    asked = request((5,), max_tokens=None, sampling=Sampling(0.0), more_prompts=more)
    with pytest.raises(RequestTimeout):
        await collect(hasty.stream(asked))
    assert asked.timeline.choices == asked.timeline.prompts == 5
    await eventually(lambda: active(pool) == 0)


async def test_an_answer_whose_engine_is_killed_goes_on_in_a_fresh_one(
    backend: LocalBackend, pool: ModelPool
) -> None:
    await backend.load(TINY)
    asked = request((5,), max_tokens=600, sampling=Sampling(0.0))
    whole = await collect(backend.stream(asked))
    events = backend.stream(asked)
    assert isinstance(await anext(events), Started)
    engine = next(one for one in pool.residents if one.files.id == TINY).engine
    assert engine
    assert engine.pid
    os.kill(engine.pid, signal.SIGKILL)
    answer = [event async for event in events]
    assert "".join(one.text for one in answer if isinstance(one, TextDelta)) == whole.text
    assert isinstance(answer[-1], Finished)
    assert (answer[-1].usage.input_tokens, answer[-1].usage.output_tokens) == (1, 600)
    assert all(resident.is_healthy for resident in pool.residents)
