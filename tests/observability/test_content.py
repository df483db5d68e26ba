"""Content is recorded as far as the setting says, in the conventions' shape, bounded, and nothing else with it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlx_manager.chat.events import (
    ChatEvent,
    ChoiceFinished,
    Delta,
    Departure,
    Finished,
    OfChoice,
    ReasoningDelta,
    Started,
    TextDelta,
    Timeline,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    collect,
)
from mlx_manager.chat.request import (
    ChatRequest,
    Conversation,
    Message,
    Origin,
    RawPrompt,
    Tool,
    ToolCall,
)
from mlx_manager.errors import EngineFailed
from mlx_manager.observability.content import (
    CONTENT_LENGTH,
    MOST_MESSAGES,
    Capture,
    _asked,
    recording_content,
)
from mlx_manager.observability.instrumented import InstrumentedBackend
from tests.observability.conftest import TOKEN, Python
from tests.support.collector import collecting
from tests.support.process import started
from tests.support.running import wait_until

ORIGIN = Origin("r-1", "/v1/chat/completions")
CONTENT = ("gen_ai.system_instructions", "gen_ai.input.messages", "gen_ai.output.messages")


class Says:
    """A backend that says the same to everybody, and may fail over it."""

    def __init__(self, *said: str | Delta | OfChoice, error: Exception | None = None) -> None:
        self._said, self._error = said, error

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        await asyncio.sleep(0)
        yield Started("m", Timeline())
        for one in self._said:
            yield TextDelta(one) if isinstance(one, str) else one
        if self._error:
            raise self._error
        yield Finished("stop", Usage(1, 1))


def conversation(*messages: Message) -> ChatRequest:
    return ChatRequest("m", Conversation(messages), ORIGIN)


class Recorded:
    """What is on the span of a chat, as a processor in front of which nothing stands has it."""

    def __init__(
        self,
        capture: Capture,
        backend: Says | None = None,
        by_key: dict[str, Capture] | None = None,
    ) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        recorder = recording_content(backend or Says("Good ", "day"), capture, by_key)
        self.backend = InstrumentedBackend(recorder, tracer=provider.get_tracer("test"))

    @property
    def attributes(self) -> dict[str, Any]:
        (span,) = [span for span in self.exporter.get_finished_spans() if span.name == "chat m"]
        return dict(span.attributes or {})

    async def of(self, *messages: Message) -> dict[str, Any]:
        await collect(self.backend.stream(conversation(*messages)))
        return self.attributes


async def test_nothing_is_recorded_unless_asked_for() -> None:
    backend = Says()
    assert recording_content(backend, "off") is backend
    assert not set(CONTENT) & set(await Recorded("off").of(Message("user", "Hello")))


@pytest.mark.parametrize("capture", ["off", "hashed", "on"])
async def test_where_a_prompt_leaves_what_is_stored_is_content(capture: Capture) -> None:
    recorded = Recorded(capture)
    asked = conversation(Message("user", "Hello"))
    asked.timeline.departure = Departure(7, "messages[0].content", "Hello", "Goodbye")
    await collect(recorded.backend.stream(asked))
    names = ("mlx.cache.miss_text", "mlx.cache.stored_text")
    found = [recorded.attributes.get(name) for name in names]
    if capture == "off":
        assert found == [None, None]
    elif capture == "on":
        assert found == ["Hello", "Goodbye"]
    else:
        assert all(str(one).startswith("hmac-sha256:") for one in found)
        assert found[0] != found[1]


async def test_a_conversation_is_recorded_in_the_shape_of_the_conventions() -> None:
    call = ToolCall("call-1", "weather", {"city": "Bern"})
    found = await Recorded("on").of(
        Message("system", "Be kind."),
        Message("user", "Weather?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "sunny", tool_call_id="call-1"),
    )

    assert json.loads(found["gen_ai.system_instructions"]) == [
        {"type": "text", "content": "Be kind."}
    ]
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "Weather?"}]},
        {
            "role": "assistant",
            "parts": [
                {
                    "type": "tool_call",
                    "id": "call-1",
                    "name": "weather",
                    "arguments": '{"city":"Bern"}',
                }
            ],
        },
        {
            "role": "tool",
            "parts": [{"type": "tool_call_response", "id": "call-1", "response": "sunny"}],
        },
    ]
    assert json.loads(found["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "Good day"}],
            "finish_reason": "stop",
        }
    ]


async def test_thoughts_and_calls_of_an_answer_are_parts_of_their_own() -> None:
    says = Says(
        ReasoningDelta("It asks "),
        ReasoningDelta("for Bern."),
        ToolCallStarted(0, "call-1", "weather"),
        ToolCallDelta(0, '{"city":'),
        ToolCallDelta(0, '"Bern"}'),
    )
    found = await Recorded("on", says).of(Message("user", "Weather?"))
    call = {"type": "tool_call", "id": "call-1", "name": "weather", "arguments": '{"city":"Bern"}'}
    (answer,) = json.loads(found["gen_ai.output.messages"])
    assert answer["parts"] == [{"type": "reasoning", "content": "It asks for Bern."}, call]

    hashed = await Recorded("hashed", says).of(Message("user", "Weather?"))
    assert "Bern" not in hashed["gen_ai.output.messages"]


async def test_each_choice_is_a_message_of_its_own() -> None:
    said = (
        OfChoice(1, TextDelta("No.")),
        OfChoice(0, TextDelta("Ye")),
        OfChoice(1, ChoiceFinished("length")),
        OfChoice(0, TextDelta("s.")),
        OfChoice(0, ChoiceFinished("stop")),
    )
    found = await Recorded("on", Says(*said)).of(Message("user", "Well?"))
    assert [
        (one["parts"][0]["content"], one["finish_reason"])
        for one in json.loads(found["gen_ai.output.messages"])
    ] == [("Yes.", "stop"), ("No.", "length")]


@pytest.mark.parametrize(("prompt", "content"), [("Once", "Once"), ((1, 2, 3), "1 2 3")])
async def test_a_raw_prompt_is_one_message(prompt: str | tuple[int, ...], content: str) -> None:
    asked = _asked(ChatRequest("m", RawPrompt(prompt), ORIGIN), None)

    (message,) = json.loads(str(asked["gen_ai.input.messages"]))
    assert message["parts"] == [{"type": "text", "content": content}]


async def test_several_prompts_are_a_message_each() -> None:
    more = (RawPrompt((1, 2)), RawPrompt("Twice"))
    asked = _asked(ChatRequest("m", RawPrompt("Once"), ORIGIN, more_prompts=more), None)

    messages = json.loads(str(asked["gen_ai.input.messages"]))
    assert [one["parts"][0]["content"] for one in messages] == ["Once", "1 2", "Twice"]


TOOLS = (
    Tool("weather", "Looks out", {"type": "object", "properties": {"city": {"type": "string"}}}),
    Tool("time"),
)


def with_tools(*tools: Tool, key_id: str | None = None) -> ChatRequest:
    origin = Origin("r-1", "/v1/chat/completions", key_id=key_id)
    return ChatRequest("m", Conversation((Message("user", "Well?"),), tools=tools), origin)


async def test_tools_are_recorded_as_they_were_defined() -> None:
    recorded = Recorded("on")
    await collect(recorded.backend.stream(with_tools(*TOOLS)))
    assert json.loads(recorded.attributes["gen_ai.tool.definitions"]) == [
        {
            "type": "function",
            "name": "weather",
            "description": "Looks out",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
        {"type": "function", "name": "time", "parameters": {}},
    ]


async def test_of_tools_hashes_give_names_only() -> None:
    recorded = Recorded("hashed")
    await collect(recorded.backend.stream(with_tools(*TOOLS)))
    weather, _ = json.loads(recorded.attributes["gen_ai.tool.definitions"])
    assert weather["name"] == "weather"
    assert weather["description"].startswith("hmac-sha256:")
    assert weather["parameters"].startswith("hmac-sha256:")


async def test_definitions_are_bounded() -> None:
    recorded = Recorded("on")
    tool = Tool("t", "x" * 1000, {"description": "y" * 1000})
    await collect(recorded.backend.stream(with_tools(*[tool] * 500)))
    definitions = json.loads(recorded.attributes["gen_ai.tool.definitions"])
    assert len(definitions) == MOST_MESSAGES
    assert len(json.dumps(definitions)) < CONTENT_LENGTH + MOST_MESSAGES * 100


async def test_without_tools_there_are_no_definitions() -> None:
    assert "gen_ai.tool.definitions" not in await Recorded("on").of(Message("user", "Hello"))


@pytest.mark.parametrize(
    ("capture", "by_key", "key_id", "is_recorded"),
    [
        ("off", {"laptop": "on"}, "laptop", True),
        ("off", {"laptop": "on"}, "agent", False),
        ("off", {"laptop": "on"}, None, False),
        ("on", {"laptop": "off"}, "laptop", False),
        ("on", {"laptop": "off"}, None, True),
    ],
)
async def test_what_is_recorded_can_be_said_for_each_key(
    capture: Capture, by_key: dict[str, Capture], key_id: str | None, is_recorded: bool
) -> None:
    recorded = Recorded(capture, by_key=by_key)
    await collect(recorded.backend.stream(with_tools(*TOOLS, key_id=key_id)))
    names = {"gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.definitions"}
    assert names & recorded.attributes.keys() == (names if is_recorded else set())


async def test_hashes_may_hold_for_a_key_alone() -> None:
    recorded = Recorded("on", by_key={"laptop": "hashed"})
    await collect(recorded.backend.stream(with_tools(key_id="laptop")))
    assert "Well?" not in str(recorded.attributes)
    assert "hmac-sha256:" in recorded.attributes["gen_ai.input.messages"]


async def test_hashes_find_equal_texts_and_give_nothing_away() -> None:
    messages = Message("user", "Good day"), Message("user", "Good day"), Message("user", "Bye")
    recorded = Recorded("hashed")
    found = await recorded.of(*messages)
    other = await Recorded("hashed").of(*messages)

    first, second, third = (
        message["parts"][0] for message in json.loads(found["gen_ai.input.messages"])
    )
    (answer,) = json.loads(found["gen_ai.output.messages"])
    assert first == second == answer["parts"][0] != third
    assert first["length"] == 8
    assert first["content"].startswith("hmac-sha256:")
    assert found["gen_ai.input.messages"] != other["gen_ai.input.messages"], "keys differ"
    assert "day" not in str(found)


async def test_content_is_bounded_and_the_newest_is_kept() -> None:
    messages = [Message("user", f"{number} " + "x" * 1000) for number in range(500)]
    found = await Recorded("on", Says("y" * 100_000)).of(*messages)

    turns = json.loads(found["gen_ai.input.messages"])
    assert len(turns) == MOST_MESSAGES
    assert turns[-1]["parts"][0]["content"] == messages[-1].content
    assert turns[0]["parts"][0]["content"] == "…"
    assert len(found["gen_ai.input.messages"]) < CONTENT_LENGTH + MOST_MESSAGES * 100
    assert len(found["gen_ai.output.messages"]) < CONTENT_LENGTH + 200


async def test_many_calls_are_recorded_in_one_look_at_the_answer() -> None:
    calls = range(10_000)
    said: list[Delta] = [ToolCallStarted(call, f"call-{call}", "wait") for call in calls]
    said += [ToolCallDelta(call, piece) for call in calls for piece in ("{", "}")]
    began_s = time.process_time()
    found = await Recorded("on", Says(*said)).of(Message("user", "Wait often."))
    # All deltas looked through for each call took 13 s.
    assert time.process_time() - began_s < 5
    (answer,) = json.loads(found["gen_ai.output.messages"])
    assert [part["arguments"] for part in answer["parts"][:9]] == ["{}"] * 9


async def test_text_that_has_no_encoding_is_recorded_all_the_same() -> None:
    for capture in ("on", "hashed"):
        recorded = Recorded(capture, Says("\ud83d"))
        found = await recorded.of(Message("user", "\ud83d"))
        found["gen_ai.input.messages"].encode()
        found["gen_ai.output.messages"].encode()


async def test_an_answer_that_fails_is_recorded_as_far_as_it_came() -> None:
    recorded = Recorded("on", Says("Goo", error=EngineFailed("it died")))
    with pytest.raises(EngineFailed):
        await recorded.of(Message("user", "Hello"))

    (answer,) = json.loads(recorded.attributes["gen_ai.output.messages"])
    assert answer["parts"][0]["content"] == "Goo"
    assert answer["finish_reason"] == "error"


async def test_an_answer_that_its_reader_left_is_recorded_as_far_as_it_came() -> None:
    recorded = Recorded("on", Says("Goo", "d day"))
    async with aclosing(recorded.backend.stream(conversation(Message("user", "Hi")))) as events:
        await anext(events)
        await anext(events)

    (answer,) = json.loads(recorded.attributes["gen_ai.output.messages"])
    assert answer["parts"][0]["content"] == "Goo"


SPANS = """
from mlx_manager.observability.setup import TelemetryOptions, configure, flush
configure(TelemetryOptions("test", records_content=%s))
from opentelemetry import trace
for scope in ("mlx_manager", "some.sdk"):
    with trace.get_tracer(scope).start_as_current_span(scope) as span:
        span.set_attribute("gen_ai.input.messages", "marked-content")
        span.set_attribute("gen_ai.tool.definitions", "marked-definitions")
        span.set_attribute("authorization", "marked-key")
flush(10)
"""


@pytest.mark.parametrize("records", [True, False])
def test_redaction_lets_ours_through_only_when_it_is_switched_on(
    python: Python, records: bool
) -> None:
    with collecting() as collector:
        python(SPANS % records, LOGFIRE_TOKEN=TOKEN, LOGFIRE_BASE_URL=collector.url)
        spans = {span.name: str(span.attributes) for span in collector.spans}

    assert ("marked-content" in spans["mlx_manager"]) is records
    assert ("marked-definitions" in spans["mlx_manager"]) is records
    assert not any(
        marked in spans["some.sdk"] for marked in ("marked-content", "marked-definitions")
    )
    assert all("marked-key" not in text for text in spans.values())


def test_the_setting_reaches_the_exported_span_of_a_real_chat(tmp_path: Path) -> None:
    with (
        collecting() as collector,
        started(
            tmp_path,
            "server",
            MLX_SERVER_CAPTURE_CONTENT="on",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        ) as server,
    ):
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={
                "model": "mlx-manager/starter",
                "messages": [{"role": "user", "content": "Hello there"}],
            },
            timeout=60,
        )
        wait_until(lambda: "chat mlx-manager/starter" in collector.span_names)
        (chat,) = [span for span in collector.spans if span.name.startswith("chat")]

    found = {item.key: item.value.string_value for item in chat.attributes}
    assert "Hello there" in found["gen_ai.input.messages"]
    (said,) = json.loads(found["gen_ai.output.messages"])
    assert said["parts"][0]["content"] == answer.json()["choices"][0]["message"]["content"]


def test_the_setting_of_a_key_is_that_of_its_requests_alone(tmp_path: Path) -> None:
    keys = {"laptop": "k" * 24, "agent": "a" * 24}
    variables = {
        "MLX_SERVER_API_KEYS": ",".join(f"{name}={key}" for name, key in keys.items()),
        "MLX_SERVER_KEY_CAPTURE_CONTENT": "laptop=on",
    }
    with collecting() as collector:
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        with started(tmp_path, "server", **variables) as server:
            for name, key in keys.items():
                httpx.post(
                    f"{server.url}/v1/completions",
                    json={"model": "mlx-manager/starter", "prompt": f"from {name}"},
                    headers={"Authorization": f"Bearer {key}"},
                    timeout=60,
                ).raise_for_status()
        said = [str(span.attributes) for span in collector.spans]

    assert any("from laptop" in text for text in said)
    assert not any("from agent" in text for text in said)
