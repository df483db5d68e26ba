"""Whose turn it is, through the real clients: priorities, keys and memory, and what traces say of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, BadRequestError
from opentelemetry.sdk.trace import ReadableSpan

from mlx_manager.mlx_server.app import create_app
from tests.conftest import TINY
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans
from tools.random_model import Shape, make_random_model

KEYS = "patient=secret-of-the-patient,other=secret-of-the-other"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A server with a single place, two keys, one of which is patient, and 1 MiB for keys and values."""
    settings = settings_for(
        tmp_path_factory.mktemp("turns"),
        model_dir,
        max_batch=1,
        kv_budget_mib=1,
        api_keys=KEYS,
        key_priorities="patient=low",
    )
    with running(create_app(settings)) as server:
        yield server


@pytest.fixture
async def openai(narrow: RunningServer) -> AsyncIterator[AsyncOpenAI]:
    async with client(narrow, "other") as made:
        yield made


@asynccontextmanager
async def client(server: RunningServer, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key=f"secret-of-the-{key}", max_retries=0, timeout=60
    ) as made:
        yield made


async def ask(openai: AsyncOpenAI, order: list[str], name: str, **extra: Any) -> None:
    answer = await openai.chat.completions.create(
        model=TINY,
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=2,
        temperature=0,
        extra_body=extra,
        extra_headers={"X-Session-ID": name},
    )
    assert answer.usage
    order.append(name)


@asynccontextmanager
async def taken(server: RunningServer, openai: AsyncOpenAI) -> AsyncIterator[None]:
    """The only place is taken."""
    stream = await openai.chat.completions.create(
        model=TINY,
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=1500,
        temperature=0,
        stream=True,
    )
    yield
    await stream.close()


async def arrive(server: RunningServer, asking: list[Any]) -> list[asyncio.Task[None]]:
    """Send requests one after the other, so that the engine has them in this order."""
    tasks = list[asyncio.Task[None]]()
    for one in asking:
        expected = server.active(TINY) + 1
        tasks.append(asyncio.create_task(one))
        await eventually(lambda expected=expected: server.active(TINY) == expected)  # type: ignore[misc]
    return tasks


async def queue_of(spans: Spans, session: str) -> ReadableSpan:
    def found() -> list[ReadableSpan]:
        chats = [
            span.context.span_id
            for span in spans.all
            if (span.attributes or {}).get("gen_ai.conversation.id") == session
        ]
        return [
            span
            for span in spans.all
            if span.name == "queue" and span.parent and span.parent.span_id in chats
        ]

    await eventually(lambda: bool(found()))
    return found()[0]


async def test_requests_run_in_the_order_of_their_priorities_and_those_of_their_keys(
    narrow: RunningServer, openai: AsyncOpenAI, spans: Spans
) -> None:
    order = list[str]()
    async with client(narrow, "patient") as patient:
        async with taken(narrow, openai):
            tasks = await arrive(
                narrow,
                [
                    ask(patient, order, "key-says-low"),
                    ask(openai, order, "says-low", priority="low"),
                    ask(openai, order, "number-says-low", priority=5),
                    ask(openai, order, "says-nothing"),
                    ask(openai, order, "number-says-high", priority=-1),
                    ask(patient, order, "says-high", priority="high"),
                ],
            )
            # The engine looks at its queue with every step.
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)
    assert set(order[:2]) == {"number-says-high", "says-high"}
    assert order[2] == "says-nothing"
    assert set(order[3:]) == {"key-says-low", "says-low", "number-says-low"}

    queue = await queue_of(spans, "key-says-low")
    attributes: dict[str, Any] = dict(queue.attributes or {})
    assert attributes["mlx.queue.priority"] == "low"
    assert attributes["mlx.queue.reason"] == "places"
    assert attributes["mlx.queue.overtaken"] >= 3
    assert attributes["mlx.queue.kv_bytes"] > 1000
    urgent = await queue_of(spans, "says-high")
    assert "mlx.queue.overtaken" not in (urgent.attributes or {})


async def test_a_key_that_asks_once_does_not_wait_for_all_that_another_has_sent(
    narrow: RunningServer, openai: AsyncOpenAI, spans: Spans
) -> None:
    order, names = list[str](), [f"flood-{number}" for number in range(5)]
    async with client(narrow, "patient") as once:
        async with taken(narrow, openai):
            flood = [ask(openai, order, name) for name in names]
            tasks = await arrive(narrow, [*flood, ask(once, order, "once", priority="normal")])
            # From here on it is the flood's key alone that uses anything.
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)
    # Clients hear of their ends a moment later, perhaps in another order; the engine says who went first.
    assert "once" in order[:2]
    queues = [await queue_of(spans, name) for name in ("once", *names)]
    assert [(one.attributes or {}).get("mlx.queue.overtaken", 0) for one in queues] == [0, *[1] * 5]


async def test_what_could_never_fit_is_refused_with_the_numbers(openai: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        await openai.chat.completions.create(
            model=TINY, messages=[{"role": "user", "content": "word " * 400}], max_tokens=2000
        )
    assert refused.value.code == "memory_exceeded"
    assert "MiB for keys and values" in refused.value.message
    assert "1.0 MiB" in refused.value.message
    assert "or raise MLX_SERVER_KV_BUDGET_MIB." in refused.value.message


async def test_an_agent_that_asks_for_more_than_it_needs_is_not_refused(tmp_path: Path) -> None:
    """Claude Code sends 32,000, pydantic-ai 64,000; the model ends where it ends."""
    make_random_model(tmp_path / "models" / TINY, Shape(context=16_384))
    settings = settings_for(tmp_path, tmp_path / "models", kv_budget_mib=2, api_keys=KEYS)
    with running(create_app(settings)) as server:
        async with client(server, "other") as openai:
            ask_for = partial(
                openai.chat.completions.create,
                model=TINY,
                messages=[{"role": "user", "content": "Hi"}],
                max_tokens=16_000,
            )
            answers = await asyncio.gather(*(ask_for(stop=["e", "a", "o"]) for _ in range(2)))
            assert {answer.choices[0].finish_reason for answer in answers} == {"stop"}
            with pytest.raises(BadRequestError, match="MiB for keys and values"):
                await ask_for(extra_body={"ignore_eos": True})


@pytest.mark.parametrize("priority", ["urgent", 1.5, True, {}])
async def test_a_priority_that_is_none_is_refused(openai: AsyncOpenAI, priority: Any) -> None:
    with pytest.raises(BadRequestError) as refused:
        await ask(openai, [], "wrong", priority=priority)
    assert "priority" in str(refused.value.param)


async def test_the_other_apis_take_a_priority_too(
    narrow: RunningServer, openai: AsyncOpenAI, spans: Spans
) -> None:
    async with AsyncAnthropic(
        base_url=narrow.url, api_key="secret-of-the-other", max_retries=0
    ) as anthropic:
        message = await anthropic.messages.create(
            model=TINY,
            max_tokens=2,
            messages=[{"role": "user", "content": "Hi"}],
            extra_body={"priority": "high"},
            extra_headers={"X-Session-ID": "anthropic"},
        )
        assert message.usage.output_tokens
    response = await openai.responses.create(
        model=TINY,
        input="Hi",
        max_output_tokens=2,
        store=False,
        extra_body={"priority": "low"},
        extra_headers={"X-Session-ID": "responses"},
    )
    assert response.usage
    text = await openai.completions.create(
        model=TINY,
        prompt="Hi",
        max_tokens=2,
        extra_body={"priority": 1},
        extra_headers={"X-Session-ID": "text"},
    )
    assert text.usage
    for session, priority in (("anthropic", "high"), ("responses", "low"), ("text", "low")):
        queue = await queue_of(spans, session)
        assert (queue.attributes or {})["mlx.queue.priority"] == priority
