"""What clients and traces are told of the prefix cache."""

from __future__ import annotations

import asyncio
import html
import re
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from opentelemetry.sdk.trace import ReadableSpan

from mlx_manager.mlx_server.app import create_app
from mlx_manager.mlx_server.state import engine_options
from mlx_manager.traces.explain import explain
from mlx_manager.traces.reader import TraceReader
from tests.server.test_tools import MODEL, ask
from tests.support.process import started
from tests.support.running import RunningServer, running, settings_for, wait_until
from tests.support.spans import Spans

SYSTEM = {"role": "system", "content": "You are the assistant of one long test. " * 12}


def conversation(*texts: str) -> list[dict[str, Any]]:
    roles = ["user", "assistant"] * len(texts)
    turns = zip(roles, texts, strict=False)
    return [SYSTEM, *({"role": role, "content": text} for role, text in turns)]


def attributes_of(name: str, phases: list[ReadableSpan]) -> dict[str, Any]:
    [phase] = [phase for phase in phases if phase.name == name]
    return dict(phase.attributes or {})


def cached(response: Any) -> int:
    return int(response.usage.prompt_tokens_details.cached_tokens)


async def test_a_repeat_is_all_cached_but_for_its_last_token(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    asked = conversation("A question that comes twice")
    first = await ask(openai, *asked, max_tokens=5)
    again = await ask(openai, *asked, max_tokens=5)
    assert cached(again) == again.usage.prompt_tokens - 1
    assert again.choices[0].message.content == first.choices[0].message.content
    chat, *phases = await spans.of_answer(again.id)
    prefill = attributes_of("prefill", phases)
    assert prefill["mlx.cache.outcome"] == "hit"
    assert prefill["mlx.prefill.tokens"] == 1
    assert "mlx.cache.miss_reason" not in prefill
    assert (chat.attributes or {})["gen_ai.usage.cache_read.input_tokens"] == cached(again)


async def test_a_prompt_is_computed_from_where_it_differs(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    await ask(openai, *conversation("One way to go on"), max_tokens=5)
    response = await ask(openai, *conversation("Quite another way to go on"), max_tokens=5)
    assert 50 < cached(response) < response.usage.prompt_tokens - 1
    chat, *phases = await spans.of_answer(response.id)
    prefill = attributes_of("prefill", phases)
    whole = dict(chat.attributes or {})
    for name in ("mlx.cache.outcome", "mlx.cache.matched_tokens", "mlx.cache.miss_reason"):
        assert whole[name] == prefill[name], "on the chat, too: one filters by it there"
    assert prefill["mlx.cache.outcome"] == "partial"
    assert prefill["mlx.cache.miss_reason"] == "diverged"
    assert prefill["mlx.cache.matched_tokens"] == cached(response)
    assert prefill["mlx.prefill.tokens"] == response.usage.prompt_tokens - cached(response)


async def test_every_api_tells_of_it_in_its_own_words(
    openai: AsyncOpenAI, server: RunningServer
) -> None:
    await ask(openai, *conversation("Told to both"), max_tokens=5)
    stream = await ask(
        openai,
        *conversation("Told to both"),
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    [usage] = [chunk.usage async for chunk in stream if chunk.usage]
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    client = AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0)
    async with client:
        message = await client.messages.create(
            model=MODEL,
            max_tokens=5,
            system=SYSTEM["content"],
            messages=[{"role": "user", "content": "Told to both"}],
        )
    assert message.usage.cache_read_input_tokens == usage.prompt_tokens - 1
    assert message.usage.input_tokens == 1


async def test_a_line_of_billing_that_is_another_one_each_time_costs_no_cached_prompt(
    anthropic: AsyncAnthropic,
) -> None:
    """As Claude Code sends it, the first of its instructions."""
    found = []
    for stamp in ("2.1.15.f1b; cch=00000", "2.1.15.a07; cch=5f3c2"):
        billing = f"x-anthropic-billing-header: cc_version={stamp}; cc_entrypoint=cli;"
        answer = await anthropic.messages.create(
            model=MODEL,
            system=[
                {"type": "text", "text": billing},
                {"type": "text", "text": "Say what was billed, and nothing but that. " * 9},
            ],
            messages=[{"role": "user", "content": "What was it?"}],
            max_tokens=2,
        )
        found.append(answer.usage)
    first, again = found
    whole = first.input_tokens + (first.cache_read_input_tokens or 0)
    assert again.cache_read_input_tokens == whole - 1
    assert again.input_tokens == 1


async def test_where_a_prompt_leaves_what_is_stored_is_told(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    head = "Everything up to here is the same, and from here on it is not:"
    for ending in ("first", "second"):
        asked = conversation("A question", "An answer", f"{head} the {ending} way to go on")
        response = await ask(openai, *asked, max_tokens=5)
    chat, *phases = await spans.of_answer(response.id)
    prefill = attributes_of("prefill", phases)
    assert prefill["mlx.cache.miss_field"] == "messages[3].content"
    assert prefill["mlx.cache.miss_token"] == cached(response)
    assert not any("text" in name for name in [*prefill, *(chat.attributes or {})])


def test_where_content_is_recorded_the_words_that_differ_are_told_and_explained(
    tmp_path: Path,
) -> None:
    # A process of its own: whether content may pass is said once, when telemetry is configured.
    with started(tmp_path, "serve", MLX_SERVER_CAPTURE_CONTENT="on") as server:
        for day in ("Monday", "Tuesday"):
            # What comes after it must be read anew, which takes its time.
            text = f"Everything before it is the same, {day} is not. " + "So is the rest. " * 40
            body = {"model": MODEL, "messages": conversation(text), "max_tokens": 5}
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        page = whole_page(f"{server.url}/traces/{answer.headers['X-Trace-ID']}")
        server.process.terminate()
        server.wait()
    with TraceReader(tmp_path / "traces.db") as reader:
        trace = reader.get_trace(answer.headers["X-Trace-ID"])
    assert trace
    [chat] = [one for one in trace.spans if one.name == f"chat {MODEL}"]
    said, stored = (str(chat.attributes[f"mlx.cache.{name}_text"]) for name in ("miss", "stored"))
    # They begin at the first token that differs, and go on for a few.
    assert "uesday" in said
    assert "Monday" not in said
    assert "onday" in stored
    assert "Tuesday" not in stored
    [sentence] = [one.sentence for one in explain(trace) if one.rule == "prefill"]
    assert sentence.endswith(f", in messages[1].content, with “{said}” instead of “{stored}”.")
    # The viewer says it, and has each part of it beside the span.
    assert sentence in page
    [prefill] = [one for one in trace.spans if one.name == "prefill"]
    told = {**prefill.attributes, **chat.attributes}
    for name in ("miss_token", "miss_field", "miss_text", "stored_text"):
        shown = re.escape(str(told[f"mlx.cache.{name}"]))
        assert re.search(rf"mlx\.cache\.{name}\s+{shown}", page), name


def whole_page(url: str) -> str:
    """The words of a trace's page, once all spans of the trace are stored."""
    words = [""]

    def is_whole() -> bool:
        page = httpx.get(url, timeout=60)
        words[0] = html.unescape(re.sub(r"<[^>]*>", " ", page.text.replace("<wbr>", "")))
        parts = ("mlx.cache.miss_text", "POST /v1/chat/completions")
        return page.status_code == 200 and all(one in words[0] for one in parts)

    wait_until(is_whole)
    return words[0]


async def test_where_tools_or_instructions_differ_they_are_named(
    openai: AsyncOpenAI, spans: Spans
) -> None:
    def tool(description: str) -> dict[str, Any]:
        function = {"name": "look_up_a_word", "description": description * 4}
        return {"type": "function", "function": {**function, "parameters": {"type": "object"}}}

    found = []
    for system, description in (
        ("Be brief in what you say. " * 5, "Finds a word. "),
        ("Be brief in what you say. " * 5, "Looks for one. "),
        ("Be brief in what you say. " * 4 + "Or not.", "Looks for one. "),
    ):
        response = await ask(
            openai,
            {"role": "system", "content": system},
            {"role": "user", "content": "Hello"},
            max_tokens=5,
            tools=[tool(description)],
            tool_choice="auto",
        )
        prefill = attributes_of("prefill", await spans.of_answer(response.id))
        found.append(prefill["mlx.cache.miss_field"])
    assert found[1:] == ["tools", "system"]


async def test_requests_that_come_together_are_read_once(openai: AsyncOpenAI, spans: Spans) -> None:
    for attempt in range(8):
        # One that a busy machine brings after the first has been read has nothing to wait for.
        if await _came_together(
            f"Told by several at once, for the {attempt}th time. ", openai, spans
        ):
            return
    pytest.fail("no three requests came while the first of them was read")


async def _came_together(text: str, openai: AsyncOpenAI, spans: Spans) -> bool:
    """Whether each of the two that were not read waited for the one that was, by its trace."""
    asked = conversation(text * 60)
    responses = await asyncio.gather(*(ask(openai, *asked, max_tokens=5) for _ in range(3)))
    assert len({response.choices[0].message.content for response in responses}) == 1
    by_cached = sorted(responses, key=cached)
    chats = [await spans.of_answer(response.id) for response in by_cached]
    first = chats[0][0].get_span_context()
    assert first is not None
    assert cached(by_cached[0]) < by_cached[0].usage.prompt_tokens - 256
    waits = []
    for response, (_, *phases) in zip(by_cached[1:], chats[1:], strict=True):
        assert cached(response) == response.usage.prompt_tokens - 1
        [queue] = [phase for phase in phases if phase.name == "queue"]
        waited_s = (queue.attributes or {}).get("mlx.queue.shared_prefix_s")
        for link in queue.links:
            if (link.attributes or {})["mlx.link.reason"] == "shared_prefix":
                assert link.context.span_id == first.span_id
                assert isinstance(waited_s, float)
                assert waited_s > 0
                waits.append(waited_s)
    return len(waits) == 2


async def test_a_conversation_goes_on_warm_after_a_restart(
    tmp_path: Path, model_dir: Path, spans: Spans
) -> None:
    settings = settings_for(tmp_path, model_dir).model_copy(
        update={"prefix_disk_mib": 64, "prefix_disk_path": tmp_path / "prefixes"}
    )
    asked, found = conversation("Told before the restart. " * 40), []
    waited_s: list[Any] = []
    for _ in range(2):
        with running(create_app(settings)) as server:
            async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
                found.append(await ask(client, *asked, max_tokens=5))
            prefill = attributes_of("prefill", await spans.of_answer(found[-1].id))
            waited_s.append(prefill.get("mlx.cache.restore_s"))
    assert cached(found[0]) == 0
    assert cached(found[1]) == found[1].usage.prompt_tokens - 1
    assert found[1].choices[0].message.content == found[0].choices[0].message.content
    assert waited_s[0] is None
    assert 0 < waited_s[1] < 60


async def test_without_bytes_on_disk_nothing_is_written(tmp_path: Path, model_dir: Path) -> None:
    """Off is off: engines are told of no folder, and there is none after a conversation."""
    on = settings_for(tmp_path, model_dir).model_copy(
        update={"prefix_disk_mib": 1, "prefix_disk_path": tmp_path / "prefixes"}
    )
    off = on.model_copy(update={"prefix_disk_mib": 0})
    assert "--prefix-disk" in engine_options(on).words(MODEL)
    assert engine_options(off).prefix_disk is None
    assert not [word for word in engine_options(off).words(MODEL) if "prefix-disk" in word]
    asked = conversation("Told to memory only. " * 40)
    with running(create_app(off)) as server:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            await ask(client, *asked, max_tokens=5)
            again = await ask(client, *asked, max_tokens=5)
        assert cached(again) == again.usage.prompt_tokens - 1
    assert not (tmp_path / "prefixes").exists()


def dated(day: int, *names: str) -> dict[str, Any]:
    """A question under instructions that say what day it is, with tools in some order."""
    about = f"You help with files.\nToday's date: 2026-11-{day}\n" + "Read before you write. " * 20
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    messages = [{"role": "system", "content": about}, {"role": "user", "content": "Hi"}]
    return {"model": MODEL, "messages": messages, "tools": tools, "max_tokens": 2}


def test_tomorrow_s_prompt_comes_from_the_cache_where_prompts_are_made_canonical(
    tmp_path: Path, model_dir: Path, spans: Spans
) -> None:
    shares, told = list[float](), list[str]()
    for models in ({}, {MODEL: {"canonical_prompts": True}}):
        settings = settings_for(tmp_path, model_dir, models=models)
        with running(create_app(settings)) as server, httpx.Client(base_url=server.url) as http:
            for body in (dated(25, "write", "read", "list"), dated(26, "list", "write", "read")):
                answer = http.post("/v1/chat/completions", json=body, timeout=60)
        usage = answer.json()["usage"]
        cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        shares.append(cached_tokens / usage["prompt_tokens"])
        told.append(answer.headers.get("X-Adjusted-Parameters", ""))
    assert shares[0] < 0.3 < shares[1]
    assert "canonical_prompts" not in told[0]
    assert "system=reordered;by=canonical_prompts, tools=reordered;by=canonical_prompts" in told[1]
    adjusted = (spans.named(f"chat {MODEL}")[-1].attributes or {})["mlx.request.adjusted"]
    assert ", ".join(map(str, cast("tuple[str, ...]", adjusted))) == told[1]
