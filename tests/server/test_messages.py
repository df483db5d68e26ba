"""`POST /v1/messages` and what belongs to it, called as people call it: with the `anthropic` package."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic as sdk
import httpx
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message, TextBlock, ThinkingBlock, ToolUseBlock
from openai import AsyncOpenAI
from opentelemetry.trace import SpanKind

from mlx_manager.mlx_server.app import create_app
from mlx_manager.mlx_server.audit.search import RequestFilter, search
from mlx_manager.mlx_server.audit.tables import AuditRow
from tests.conftest import ENDLESS_TOKENS
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans

MODEL = "test/tiny"
STARTER = "mlx-manager/starter"
MESSAGES = "/v1/messages"
TURNS: list[Any] = [{"role": "user", "content": "Count to a million."}]
GREEDY = {"temperature": 0}
VERSION = {"anthropic-version": "2023-06-01"}
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}


def arguments(changes: dict[str, Any]) -> dict[str, Any]:
    """What to ask; `temperature` goes into the body as older clients send it."""
    asked: dict[str, Any] = {"model": MODEL, "messages": TURNS, "max_tokens": 40}
    return asked | changes | {"extra_body": GREEDY | changes.get("extra_body", {})}


async def ask(client: AsyncAnthropic, **changes: Any) -> Message:
    answer: Message = await client.messages.create(**arguments(changes))
    return answer


def text_of(message: Message) -> str:
    [block] = message.content
    assert isinstance(block, TextBlock)
    return block.text


def encoded(**changes: Any) -> bytes:
    asked = {"model": MODEL, "messages": TURNS, "max_tokens": 3}
    return json.dumps(asked | changes).encode()


async def row_of(server: RunningServer, request_id: str | None) -> AuditRow:
    """The one row of a request that has ended."""
    await eventually(lambda: bool(server.audited(request_id or "")))
    async with server.state.database.sessions() as session:
        [row] = await search(session, RequestFilter(request_id=request_id), 10)
    return row


async def test_an_answer_has_every_field_that_the_api_reference_promises(
    anthropic: AsyncAnthropic,
) -> None:
    # No other test asks this: nothing of it is in the prefix cache.
    unheard: list[Any] = [{"role": "user", "content": "Which fields does a message have?"}]
    answer = await ask(anthropic, messages=unheard)
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", MODEL)
    assert answer.id == f"msg_{answer._request_id}"
    assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
    assert answer.usage.output_tokens == 40
    assert answer.usage.input_tokens > 0
    assert answer.usage.cache_read_input_tokens == 0
    assert answer.usage.cache_creation_input_tokens == 0


async def test_an_answer_is_the_same_as_through_openais_api(
    anthropic: AsyncAnthropic, openai: AsyncOpenAI
) -> None:
    answer = await ask(anthropic, system="Be brief.")
    other = await openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Be brief."}, *TURNS],
        max_tokens=40,
        temperature=0,
    )
    assert text_of(answer) == other.choices[0].message.content
    assert other.usage is not None
    read = answer.usage.cache_read_input_tokens or 0
    assert answer.usage.input_tokens + read == other.usage.prompt_tokens


async def test_a_stream_adds_up_to_the_whole_answer(anthropic: AsyncAnthropic) -> None:
    # This one reads what both of the others find in the prefix cache.
    await ask(anthropic, max_tokens=1)
    whole = await ask(anthropic, max_tokens=400)
    async with anthropic.messages.stream(**arguments({"max_tokens": 400})) as stream:
        kinds = [event.type async for event in stream]
        streamed = await stream.get_final_message()
    assert text_of(streamed) == text_of(whole)
    assert streamed.usage == whole.usage
    assert streamed.stop_reason == whole.stop_reason == "max_tokens"
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert kinds.count("content_block_delta") > 3


async def test_every_event_of_a_stream_has_its_name(http: httpx.AsyncClient) -> None:
    response = await http.post(
        MESSAGES, content=encoded(stream=True), headers={"Content-Type": "application/json"}
    )
    assert response.headers["Content-Type"].startswith("text/event-stream")
    for frame in response.text.removesuffix("\n\n").split("\n\n"):
        name, payload = frame.split("\n")
        assert name.removeprefix("event: ") == json.loads(payload.removeprefix("data: "))["type"]


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"system": [{"type": "text", "text": "Be brief."}], "tools": [TOOL]},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"messages": [{"role": "user", "content": "word " * 1000}]},
    ],
)
async def test_tokens_are_counted_as_the_answer_counts_them(
    anthropic: AsyncAnthropic, prompt: dict[str, Any]
) -> None:
    asked = {"model": MODEL, "messages": TURNS} | prompt
    counted = await anthropic.messages.count_tokens(**asked)
    answer = await ask(anthropic, **prompt)
    usage = answer.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


async def test_tokens_are_counted_without_the_model_s_weights(
    server: RunningServer, anthropic: AsyncAnthropic
) -> None:
    before = {resident.files.id for resident in server.pool.residents}
    counted = await anthropic.messages.count_tokens(model="test/short", messages=TURNS)
    longer = await anthropic.messages.count_tokens(
        model="test/short", messages=[{"role": "user", "content": "word " * 200}]
    )
    assert 0 < counted.input_tokens < 64 < longer.input_tokens
    assert {resident.files.id for resident in server.pool.residents} <= before


async def test_an_answer_ends_before_a_stop_sequence(anthropic: AsyncAnthropic) -> None:
    whole = text_of(await ask(anthropic, model=STARTER))
    stop = whole[10:14]
    asked = {"model": STARTER, "stop_sequences": ["never to be seen", stop]}
    answer = await ask(anthropic, **asked)
    assert text_of(answer) == whole[: whole.index(stop)] != ""
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    async with anthropic.messages.stream(**arguments(asked)) as stream:
        streamed = await stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", stop)
    assert text_of(streamed) == text_of(answer)


async def test_an_answer_that_fills_the_context_says_so(anthropic: AsyncAnthropic) -> None:
    usage = (answer := await ask(anthropic, model="test/short", max_tokens=1000)).usage
    read = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert read + usage.output_tokens == 64
    assert answer.stop_reason == "model_context_window_exceeded"


async def test_what_only_labels_a_request_changes_nothing(anthropic: AsyncAnthropic) -> None:
    cached = {"type": "ephemeral"}
    labelled = await ask(
        anthropic,
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": TURNS[0]["content"], "cache_control": cached}],
            }
        ],
        metadata={"user_id": "u"},
        service_tier="auto",
        cache_control=cached,
        extra_headers={"anthropic-beta": "interleaved-thinking-2025-05-14"},
    )
    assert text_of(labelled) == text_of(await ask(anthropic))


async def test_the_beta_client_is_answered_as_well(anthropic: AsyncAnthropic) -> None:
    answer = await anthropic.beta.messages.create(**arguments({"betas": ["context-1m-2025-08-07"]}))
    assert answer.stop_reason == "max_tokens"


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"top_k": 1.5}, "top_k"),
        ({"nonsense": 1}, "nonsense"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
    ],
)
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_refusal_names_the_place_in_the_shape_that_the_sdk_reads(
    anthropic: AsyncAnthropic, changes: dict[str, Any], place: str, is_streamed: bool
) -> None:
    with pytest.raises(sdk.BadRequestError) as refusal:
        await ask(anthropic, stream=is_streamed, extra_body=changes)
    assert refusal.value.type == "invalid_request_error"
    assert place in message_of(refusal.value)


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize(
    "asked",
    [{}, {"tools": [TOOL], "tool_choice": {"type": "any"}}, {"thinking": {"type": "adaptive"}}],
    ids=["text", "call", "thoughts"],
)
async def test_max_tokens_0_reads_the_prompt_into_the_prefix_cache_and_answers_nothing(
    anthropic: AsyncAnthropic, asked: dict[str, Any], is_streamed: bool
) -> None:
    topic = f"What is kept before it is asked for? {sorted(asked)} {is_streamed} " * 3
    turns: list[Any] = [{"role": "user", "content": topic}]
    asked |= {"model": STARTER, "messages": turns}
    if is_streamed:
        async with anthropic.messages.stream(**asked, max_tokens=0) as stream:
            warmed = await stream.get_final_message()
    else:
        warmed = await anthropic.messages.create(**asked, max_tokens=0)
    assert (warmed.content, warmed.stop_reason, warmed.stop_sequence) == ([], "max_tokens", None)
    assert warmed.usage.output_tokens == 0
    read = warmed.usage.input_tokens + (warmed.usage.cache_read_input_tokens or 0)
    answer = await anthropic.messages.create(**asked, max_tokens=3)
    assert answer.usage.cache_read_input_tokens == read - 1
    assert answer.usage.input_tokens == 1


async def test_a_name_that_is_half_a_surrogate_pair_is_refused(http: httpx.AsyncClient) -> None:
    body = (
        b'{"model": "test/tiny", "max_tokens": 1, "messages": [{"role": "user", "content": '
        b'[{"type": "text", "text": "x", "\\ud800": 1}]}]}'
    )
    response = await http.post(MESSAGES, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "messages[0].content[0]" in response.json()["error"]["message"]


def message_of(error: sdk.APIStatusError) -> str:
    """What a person reads; the rest of the body must be as Anthropic's is."""
    body: Any = error.body
    assert set(body) == {"type", "error", "request_id"}
    assert set(body["error"]) == {"type", "message"}
    assert body["request_id"] == error.request_id == error.response.headers["X-Request-ID"]
    return str(body["error"]["message"])


async def test_an_unknown_model_is_a_404_with_the_ids_that_exist(
    server: RunningServer, anthropic: AsyncAnthropic
) -> None:
    for asking in (
        ask(anthropic, model="no/such"),
        anthropic.messages.count_tokens(model="no/such", messages=TURNS),
    ):
        with pytest.raises(sdk.NotFoundError) as refusal:
            await asking
        assert refusal.value.type == "not_found_error"
        assert "mlx-manager/starter" in message_of(refusal.value)
        row = await row_of(server, refusal.value.request_id)
        assert (row.error_code, row.error_type) == ("model_not_found", "not_found_error")


async def test_a_prompt_that_leaves_no_room_is_refused(anthropic: AsyncAnthropic) -> None:
    long = [{"role": "user", "content": "word " * 200}]
    with pytest.raises(sdk.BadRequestError, match="takes 64 with the answer"):
        await ask(anthropic, model="test/short", messages=long)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", MESSAGES, 405, "invalid_request_error"),
        ("POST", f"{MESSAGES}/batches", 404, "not_found_error"),
        ("POST", MESSAGES, 413, "request_too_large"),
        ("GET", "/v1/models/no/such", 404, "not_found_error"),
    ],
)
async def test_every_error_of_these_routes_has_anthropics_shape(
    http: httpx.AsyncClient, method: str, path: str, status: int, kind: str
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(33 if status == 413 else 0):
            yield b" " * 2**20

    response = await http.request(method, path, content=pieces(), headers=VERSION)
    body = response.json()
    assert response.status_code == status
    assert body["error"]["type"] == kind
    assert body["request_id"] == response.headers["request-id"] == response.headers["X-Request-ID"]


async def test_the_audit_row_and_the_trace_are_those_of_a_chat(
    server: RunningServer, anthropic: AsyncAnthropic, spans: Spans
) -> None:
    answer = await ask(anthropic, max_tokens=3)
    row = await row_of(server, answer._request_id)
    assert (row.endpoint, row.operation, row.outcome) == (MESSAGES, "chat", "completed")
    assert (row.output_tokens, row.finish_reason, row.stream) == (3, "length", False)

    def chats() -> list[Any]:
        return [span for span in spans.named(f"chat {MODEL}") if span.kind is SpanKind.INTERNAL]

    await eventually(lambda: bool(chats()))
    [chat] = chats()
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert chat.attributes["gen_ai.response.id"] == answer.id
    assert (await spans.wait(f"POST {MESSAGES}")).context.trace_id == chat.context.trace_id


async def test_a_count_leaves_a_row_that_is_no_chat(
    server: RunningServer, anthropic: AsyncAnthropic
) -> None:
    counted = await anthropic.messages.count_tokens(model=MODEL, messages=TURNS)
    row = await row_of(server, counted._request_id)
    assert (row.operation, row.outcome, row.model) == (None, "completed", MODEL)
    assert (row.output_tokens, row.error_code) == (None, None)


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_client_that_leaves_ends_the_work(
    server: RunningServer, anthropic: AsyncAnthropic, is_streamed: bool
) -> None:
    await ask(anthropic)  # loads the model
    if is_streamed:
        stream = await anthropic.messages.create(
            stream=True, **arguments({"max_tokens": ENDLESS_TOKENS})
        )
        assert server.active(MODEL) == 1
        await stream.close()
        request_id = stream.response.headers["request-id"]
    else:
        request_id = "left-before-its-answer"
        asking = asyncio.create_task(
            ask(anthropic, max_tokens=ENDLESS_TOKENS, extra_headers={"X-Request-ID": request_id})
        )
        await eventually(lambda: server.active(MODEL) == 1)
        asking.cancel()
    await eventually(lambda: server.active(MODEL) == 0, timeout_s=5)
    assert (await row_of(server, request_id)).outcome == "cancelled"


async def test_models_are_listed_in_anthropics_shape_for_its_client(
    anthropic: AsyncAnthropic,
) -> None:
    models = [model async for model in anthropic.models.list(limit=2)]
    ids = ["mlx-manager/starter", "test/late", "test/plain", "test/short", "test/tiny"]
    assert [model.id for model in models] == ids
    assert {model.type for model in models} == {"model"}
    one = await anthropic.models.retrieve("test/tiny")
    assert (one.id, one.display_name) == ("test/tiny", "test/tiny")
    assert one.created_at.year >= 2023
    with pytest.raises(sdk.NotFoundError, match="test/tiny"):
        await anthropic.models.retrieve("test/unknown")


WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather of a place",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
QUESTION: Any = {"role": "user", "content": "What is the weather in Bern?"}


async def test_the_model_calls_a_tool_and_reads_its_result(anthropic: AsyncAnthropic) -> None:
    asked: dict[str, Any] = {"model": STARTER, "tools": [WEATHER], "max_tokens": 200}
    answer = await ask(anthropic, messages=[QUESTION], **asked)
    assert answer.stop_reason == "tool_use"
    call = answer.content[-1]
    assert isinstance(call, ToolUseBlock)
    assert (call.name, set(call.input)) == ("get_weather", {"city"})
    assert re.fullmatch("toolu_[0-9a-f]{24}", call.id)

    async with anthropic.messages.stream(**arguments({"messages": [QUESTION], **asked})) as stream:
        streamed = (await stream.get_final_message()).content[-1]
    assert isinstance(streamed, ToolUseBlock)
    assert (streamed.name, streamed.input) == (call.name, call.input)
    assert re.fullmatch("toolu_[0-9a-f]{24}", streamed.id)

    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny, 21 C"}
    turns = [QUESTION, answer.to_param(), {"role": "user", "content": [result]}]
    after = await ask(anthropic, messages=turns, **asked)
    assert after.stop_reason == "end_turn"
    assert text_of(after)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
async def test_a_tool_that_must_be_called_is_called(
    anthropic: AsyncAnthropic, choice: dict[str, Any]
) -> None:
    answer = await ask(
        anthropic,
        model=STARTER,
        messages=[{"role": "user", "content": "The weather in Rome"}],
        tools=[WEATHER],
        tool_choice=choice | {"disable_parallel_tool_use": True},
        max_tokens=200,
    )
    assert [block.type for block in answer.content] == ["tool_use"]


@pytest.mark.parametrize("display", ["summarized", "omitted"])
async def test_the_model_thinks_and_its_thoughts_come_back(
    server: RunningServer, anthropic: AsyncAnthropic, display: str
) -> None:
    question: Any = {"role": "user", "content": "What is prefill?"}
    asked: dict[str, Any] = {
        "model": STARTER,
        "thinking": {"type": "adaptive", "display": display},
        "max_tokens": 400,
    }
    answer = await ask(anthropic, messages=[question], **asked)
    thinking, text = answer.content
    assert isinstance(thinking, ThinkingBlock)
    assert isinstance(text, TextBlock)
    assert bool(thinking.thinking) is (display == "summarized")
    assert server.state.signer.read(thinking.thinking, thinking.signature)
    assert answer.usage.output_tokens_details is not None
    assert answer.usage.output_tokens_details.thinking_tokens > 0

    async with anthropic.messages.stream(**arguments({"messages": [question], **asked})) as stream:
        streamed = await stream.get_final_message()
    assert [block.to_dict() for block in streamed.content] == [
        block.to_dict() for block in answer.content
    ]

    again: Any = [question, answer.to_param(), {"role": "user", "content": "Thanks."}]
    without: Any = [question, {"role": "assistant", "content": text.text}, again[-1]]
    counts = [
        (await anthropic.messages.count_tokens(model=STARTER, messages=turns)).input_tokens
        for turns in (again, without)
    ]
    assert counts[0] > counts[1]


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A server that gives an answer half a second."""
    settings = settings_for(
        tmp_path_factory.mktemp("hurried"), model_dir, chat_timeout_s=1, preload=MODEL
    )
    with running(create_app(settings)) as server:
        yield server


async def test_an_error_in_the_middle_of_a_stream_is_an_event_that_the_sdk_raises(
    hurried: RunningServer,
) -> None:
    async with AsyncAnthropic(base_url=hurried.url, api_key="none", max_retries=0) as client:
        stream = await client.messages.create(stream=True, **arguments({"max_tokens": 3900}))
        kinds = list[str]()

        async def read() -> None:
            async for event in stream:
                kinds.append(event.type)

        with pytest.raises(sdk.APIStatusError, match=r"longer than 1 s") as met:
            await read()
    assert kinds[:3] == ["message_start", "content_block_start", "content_block_delta"]
    assert met.value.type == "timeout_error"
    row = await row_of(hurried, met.value.request_id)
    assert (row.status, row.outcome) == (200, "failed")
    assert (row.error_code, row.error_type) == ("request_timeout", "timeout_error")


async def test_an_answer_that_takes_too_long_is_a_504(hurried: RunningServer) -> None:
    async with AsyncAnthropic(base_url=hurried.url, api_key="none", max_retries=0) as client:
        with pytest.raises(sdk.APIStatusError) as met:
            await ask(client, max_tokens=3900)
    assert (met.value.status_code, met.value.type) == (504, "timeout_error")


def object_of(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    fields = {"properties": {name: schema}, "required": [name], "additionalProperties": False}
    return {"type": "object", **fields}


async def test_an_answer_is_held_to_its_schema(anthropic: AsyncAnthropic) -> None:
    schema = object_of("ok", {"type": "boolean"})
    answer = await anthropic.messages.create(
        model=STARTER,
        max_tokens=200,
        messages=[{"role": "user", "content": "Hello"}],
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert answer.content[0].type == "text"
    assert set(json.loads(answer.content[0].text)) == {"ok"}


async def test_the_input_of_a_strict_tool_is_of_its_schema(anthropic: AsyncAnthropic) -> None:
    schema = object_of("city", {"enum": ["Oslo", "Rome"]})
    answer = await anthropic.messages.create(
        model=STARTER,
        max_tokens=200,
        messages=[{"role": "user", "content": "Tell me a joke"}],
        tools=[{"name": "get_weather", "input_schema": schema, "strict": True}],
        tool_choice={"type": "tool", "name": "get_weather"},
    )
    assert answer.stop_reason == "tool_use"
    (block,) = answer.content
    assert block.type == "tool_use"
    assert block.input["city"] in ("Oslo", "Rome")
