"""Anthropic's JSON to chat requests and back: pure, no server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from anthropic.types import Message as SdkMessage
from anthropic.types import ModelInfo, RawMessageStreamEvent
from anthropic.types import Usage as SdkUsage
from anthropic.types.beta import BetaModelInfo
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse

from mlx_manager.chat.abilities import Abilities
from mlx_manager.chat.events import (
    Answer,
    ChatEvent,
    Finished,
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
    Tool,
    ToolCall,
    ToolChoice,
)
from mlx_manager.errors import (
    EngineFailed,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
    UnsupportedParameter,
)
from mlx_manager.wire.anthropic.bodies import message_body
from mlx_manager.wire.anthropic.errors import error_body, error_event
from mlx_manager.wire.anthropic.models import model_info, models_page, models_query
from mlx_manager.wire.anthropic.parameters import HARMLESS, HARMLESS_TO_A_COUNT, NEUTRAL_VALUES
from mlx_manager.wire.anthropic.requests import count_request, message_request
from mlx_manager.wire.anthropic.schema import CountTokensBody, MessagesBody
from mlx_manager.wire.anthropic.streams import (
    to_events,
    to_message,
)
from mlx_manager.wire.dialects import dialect_of
from mlx_manager.wire.signature import Signer
from tests.support.sdk_types import extras_of

ORIGIN = Origin("request-1", "/v1/messages")
SIGNER = Signer(b"a key of this process")
SCHEMA = {"type": "object", "properties": {"at": {"type": "integer"}}}
TOOL = {"name": "look", "description": "Looks.", "input_schema": SCHEMA}
TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 3}}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


def body(*turns: dict[str, Any], **fields: Any) -> dict[str, Any]:
    messages = list(turns) or [{"role": "user", "content": "Hi"}]
    return {"model": "m", "max_tokens": 9, "messages": messages} | fields


def request_for(*turns: dict[str, Any], **fields: Any) -> ChatRequest:
    return message_request(MessagesBody.model_validate(body(*turns, **fields)), ORIGIN, SIGNER)


def counted(*turns: dict[str, Any], **fields: Any) -> ChatRequest:
    return count_request(CountTokensBody.model_validate(body(*turns, **fields)), ORIGIN, SIGNER)


def conversation_of(request: ChatRequest) -> Conversation:
    assert isinstance(request.input, Conversation)
    return request.input


def messages_of(*turns: dict[str, Any], **fields: Any) -> tuple[Message, ...]:
    return conversation_of(counted(*turns, **fields)).messages


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **fields}


def result(call_id: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **fields}


@pytest.mark.parametrize("system", ["Be brief.\nBe kind.", [text("Be brief."), text("Be kind.")]])
def test_a_system_prompt_is_the_first_message(system: Any) -> None:
    assert messages_of(system=system) == (
        Message("system", "Be brief.\nBe kind."),
        Message("user", "Hi"),
    )


def test_results_of_tools_become_messages_of_their_own_and_keep_their_order() -> None:
    assert messages_of(
        user(text("Look twice.")),
        assistant(text("I "), text("look."), TOOL_USE, TOOL_USE | {"id": "toolu_2"}),
        user(
            result("toolu_2", [text("a cat"), text("and a dog")]),
            result("toolu_1", "gone", is_error=True),
            text("And now?"),
            result("toolu_3", None),
        ),
    ) == (
        Message("user", "Look twice."),
        Message(
            "assistant",
            "I look.",
            tool_calls=(
                ToolCall("toolu_1", "look", {"at": 3}),
                ToolCall("toolu_2", "look", {"at": 3}),
            ),
        ),
        Message("tool", "a cat\nand a dog", tool_call_id="toolu_2"),
        Message("tool", "Error: gone", tool_call_id="toolu_1"),
        Message("user", "And now?"),
        Message("tool", "", tool_call_id="toolu_3"),
    )


def test_turns_of_the_same_role_are_one_turn_as_the_api_reference_says() -> None:
    assert messages_of(
        {"role": "user", "content": "One."},
        {"role": "user", "content": "Two."},
        assistant({"type": "thinking", "thinking": "Hm.", "signature": ""}, TOOL_USE),
        {"role": "assistant", "content": "Well."},
        user(result("toolu_1", "a")),
        user(result("toolu_1", "b")),
    ) == (
        Message("user", "One.\nTwo."),
        Message(
            "assistant",
            "Well.",
            tool_calls=(ToolCall("toolu_1", "look", {"at": 3}),),
            reasoning="Hm.",
        ),
        Message("tool", "a", tool_call_id="toolu_1"),
        Message("tool", "b", tool_call_id="toolu_1"),
    )


def test_instructions_in_the_middle_stay_there() -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "system", "user")]
    assert [message.role for message in messages_of(*turns)] == [turn["role"] for turn in turns]


@pytest.mark.parametrize("signature", ["", "of another server", SIGNER.sign("x", is_shown=True)])
def test_thinking_comes_back_as_text_whoever_signed_it(signature: str) -> None:
    thinking = {"type": "thinking", "thinking": "Let me look.", "signature": signature}
    redacted = {"type": "redacted_thinking", "data": "c2VjcmV0"}
    assert messages_of(assistant(thinking, redacted, text("A cat."))) == (
        Message("assistant", "A cat.", reasoning="Let me look."),
    )


def test_a_signature_is_known_again_by_the_process_that_made_it() -> None:
    signature = SIGNER.sign("Let me look.", is_shown=True)
    assert SIGNER.is_ours("Let me look.", signature)
    assert not SIGNER.is_ours("Let me lie.", signature)
    assert not Signer(b"another key").is_ours("Let me look.", signature)
    for foreign in ("", "no base64!", "ключ", signature[:-8]):
        assert not SIGNER.is_ours("Let me look.", foreign)


def test_thinking_that_was_not_shown_is_in_its_signature_for_the_same_process() -> None:
    hidden = {
        "type": "thinking",
        "thinking": "",
        "signature": SIGNER.sign("Let me look. 😀", is_shown=False),
    }
    assert messages_of(assistant(hidden))[0].reasoning == "Let me look. 😀"
    request = MessagesBody.model_validate(body(assistant(hidden), user(text("And?"))))
    restarted = message_request(request, ORIGIN, Signer(b"another key"))
    assert conversation_of(restarted).messages[0].reasoning is None


def test_tools_and_how_they_may_be_used_are_handed_on() -> None:
    choices: dict[str, ToolChoice] = {
        "auto": ToolChoice("auto"),
        "any": ToolChoice("required"),
        "none": ToolChoice("none"),
    }
    for kind, choice in choices.items():
        request = request_for(tools=[TOOL | {"type": "custom"}], tool_choice={"type": kind})
        assert conversation_of(request).tools == (Tool("look", "Looks.", SCHEMA),)
        assert conversation_of(request).tool_choice == choice
    named = request_for(tools=[TOOL], tool_choice={"type": "tool", "name": "look"})
    assert conversation_of(named).tool_choice == ToolChoice("required", "look")
    single = {"type": "auto", "disable_parallel_tool_use": True}
    alone = request_for(tools=[TOOL], tool_choice=single)
    assert conversation_of(alone).tool_choice == ToolChoice("auto", is_parallel=False)


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        (None, None),
        ({"type": "disabled"}, False),
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive", "display": "summarized"}, True),
    ],
)
def test_thinking_is_switched_on_and_off(thinking: Any, expected: bool | None) -> None:
    request = request_for(thinking=thinking)
    assert conversation_of(request).thinking is expected
    assert request.sampling.thinking_tokens == (thinking or {}).get("budget_tokens")


def test_between_tools_a_model_thinks_when_it_has_a_result() -> None:
    between = {"thinking": {"type": "between_tools"}}
    assert conversation_of(request_for(**between)).thinking is False
    called = [user(text("Hi")), assistant(TOOL_USE)]
    after = request_for(*called, user(result("toolu_1", "a")), **between)
    assert conversation_of(after).thinking is True
    later = request_for(*called, user(result("toolu_1", "a")), user(text("And?")), **between)
    assert conversation_of(later).thinking is False


def test_of_pictures_and_documents_in_a_result_the_model_is_told_and_they_are_counted() -> None:
    pdf = {"type": "document", "source": {"type": "base64", "data": "aGk="}, "title": "A paper"}
    plain = {"type": "document", "source": {"type": "text", "data": "All of it."}}
    request = request_for(
        user(text("See:")),
        assistant(TOOL_USE, TOOL_USE | {"id": "toolu_2"}),
        user(result("toolu_1", [text("a.png"), PNG, pdf]), result("toolu_2", [plain])),
    )
    _, _, first, second = conversation_of(request).messages
    assert first.content == (
        "a.png\n[image left out: this model reads text only]\n"
        "[document left out: this model reads text only]"
    )
    assert second.content == "All of it."
    assert (first.left_out, second.left_out, request.left_out) == (2, 0, 2)


PLAIN = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "All of it."},
}
FOUND = {
    "type": "search_result",
    "source": "https://cats.example",
    "title": "Cats",
    "content": [{"type": "text", "text": "A cat"}, {"type": "text", "text": "has paws."}],
}


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (PLAIN, "All of it."),
        (
            PLAIN | {"title": "A paper", "context": "Of last year.", "citations": {"enabled": False}},
            "A paper\nOf last year.\nAll of it.",
        ),
        ({"type": "document", "source": {"type": "content", "content": "All of it."}}, "All of it."),
        (
            {
                "type": "document",
                "title": None,
                "source": {"type": "content", "content": [text("All"), text("of it.")]},
            },
            "All\nof it.",
        ),
        (FOUND, "Cats\nhttps://cats.example\nA cat\nhas paws."),
        (FOUND | {"cache_control": {"type": "ephemeral"}, "citations": None},
         "Cats\nhttps://cats.example\nA cat\nhas paws."),
    ],
)  # fmt: skip
def test_a_document_of_text_and_what_a_search_found_are_read(
    block: dict[str, Any], words: str
) -> None:
    assert messages_of(user(text("See:"), block, text("And?"))) == (
        Message("user", f"See:\n{words}\nAnd?"),
    )
    request = request_for(user(text("Hi")), assistant(TOOL_USE), user(result("toolu_1", [block])))
    *_, told = conversation_of(request).messages
    assert (told.content, request.left_out) == (words, 0)


@pytest.mark.parametrize(
    ("block", "param"),
    [
        (PLAIN | {"citations": {"enabled": True}}, "citations"),
        (PLAIN | {"foo": 1}, "foo"),
        (PLAIN | {"source": PLAIN["source"] | {"foo": 1}}, "source.foo"),  # type: ignore[operator]
        (FOUND | {"citations": {"enabled": True}}, "citations"),
        (FOUND | {"foo": 1}, "foo"),
        (FOUND | {"content": [text("A cat", foo=1)]}, "content[0].foo"),
        (FOUND | {"content": [text("A cat"), PNG]}, "content[1]"),
    ],
)
def test_what_they_ask_for_and_nobody_here_does_is_refused(
    block: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        counted(user(text("See:"), block))
    assert refusal.value.param == f"messages[0].content[1].{param}"


BILLING = "x-anthropic-billing-header: cc_version=2.1.15.f1b; cc_entrypoint=cli; cch=00000;"


def test_the_line_of_billing_is_no_part_of_the_prompt() -> None:
    plain = messages_of(system=[text("You are Claude Code."), text("Be brief.")])
    blocks = [text(BILLING), text("You are Claude Code."), text("Be brief.")]
    assert messages_of(system=blocks) == plain
    assert messages_of(system=f"{BILLING}\nYou are Claude Code.\nBe brief.") == plain
    assert messages_of(system=[text(BILLING)]) == messages_of()
    quoted = f"What is {BILLING}"
    assert messages_of(system=quoted)[0].content == quoted


def test_that_the_line_of_billing_was_left_out_is_told() -> None:
    told = ("x-anthropic-billing-header",)
    for system in (f"{BILLING}\nBe brief.", [text("Be brief."), text(BILLING)]):
        assert conversation_of(request_for(system=system)).unheld == told
    for system in (f"What is {BILLING}", [text("Be brief.")]):
        assert conversation_of(request_for(system=system)).unheld == ()
    assert conversation_of(request_for()).unheld == ()


@pytest.mark.parametrize("effort", ["low", "max"])
def test_effort_is_told_to_the_template(effort: str) -> None:
    request = request_for(output_config={"effort": effort})
    assert conversation_of(request).template_arguments == {"reasoning_effort": effort}
    assert conversation_of(request_for()).template_arguments == {}


def test_the_bodies_of_older_clients_say_how_to_sample() -> None:
    request = request_for(temperature=0, top_p=0.5, top_k=7, stop_sequences=["\n\nHuman:"])
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 7)
    assert (request.stop, request.max_tokens, request.stream) == (("\n\nHuman:",), 9, False)


@pytest.mark.parametrize(
    ("turns", "fields", "place"),
    [
        ([user(text("See:"), PNG)], {}, "messages[0].content[1]"),
        ([user({"type": "document", "source": {}})], {}, "messages[0].content[0]"),
        (
            [user({"type": "document", "source": {"type": "url", "url": "https://a"}})],
            {},
            "messages[0].content[0]",
        ),
        (
            [
                user(
                    {"type": "document", "source": {"type": "content", "content": [text("a"), PNG]}}
                )
            ],
            {},
            "messages[0].content[0]",
        ),
        (
            [user(result("t", [text("a"), {"type": "tool_reference"}]))],
            {},
            "messages[0].content[0].content[1]",
        ),
        ([user(TOOL_USE)], {}, "messages[0].content[0]"),
        ([assistant(result("t", "a"))], {}, "messages[0].content[0]"),
        ([user({"type": ["text"]})], {}, "messages[0].content[0]"),
        ([user({})], {}, "messages[0].content[0]"),
        ([], {"system": [PNG]}, "system[0]"),
        ([], {"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0]"),
        ([], {"tools": [TOOL, {"type": "bash_20250124", "name": "b"}]}, "tools[1]"),
        ([], {"tools": [TOOL, {"type": "code_execution_20260521", "name": "c"}]}, "tools[1]"),
    ],
)
def test_what_a_model_here_can_not_take_is_refused_where_it_stands(
    turns: list[dict[str, Any]], fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        counted(*turns, **fields)
    assert refusal.value.param == place
    assert place in refusal.value.message


def test_a_tool_that_only_anthropic_runs_is_left_out_beside_others() -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    conversation = conversation_of(counted(user(text("a")), tools=[TOOL, search]))
    assert [tool.name for tool in conversation.tools] == [TOOL["name"]]
    assert conversation.absent_tools == ("tools[1]",)
    with pytest.raises(InvalidRequest, match=r"'web_search'.*left out here.*or send 'auto'"):
        counted(
            user(text("a")),
            tools=[TOOL, search],
            tool_choice={"type": "tool", "name": "web_search"},
        )


@pytest.mark.parametrize(
    ("turns", "fields", "place"),
    [
        ([user({"type": "text"})], {}, "messages[0].content[0].text"),
        ([user({"type": "document"})], {}, "messages[0].content[0].source"),
        ([user({"type": "search_result"})], {}, "messages[0].content[0].source"),
        ([assistant(TOOL_USE | {"input": "{}"})], {}, "messages[0].content[0].input"),
        ([], {"tools": [{"name": "look"}]}, "tools[0].input_schema"),
        ([], {"tools": [TOOL | {"name": "a b"}]}, "tools[0].name"),
        ([], {"tool_choice": {"type": "any"}}, "tool_choice"),
        (
            [],
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}},
            "tool_choice.name",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_stands(
    turns: list[dict[str, Any]], fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        counted(*turns, **fields)
    assert refusal.value.param == place


BEGUN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The best is ("}]


def test_an_answer_that_is_begun_is_counted_and_gone_on_with() -> None:
    for request in (counted(*BEGUN), request_for(*BEGUN)):
        conversation = conversation_of(request)
        assert conversation.messages[-1] == Message("assistant", "The best is (")
        assert conversation.is_begun
    assert not conversation_of(request_for(BEGUN[0])).is_begun


def test_calls_whose_results_are_still_to_come_are_counted_and_refused() -> None:
    called = (BEGUN[0], assistant(text("Let me see."), TOOL_USE))
    assert not conversation_of(counted(*called)).is_begun
    with pytest.raises(InvalidRequest, match="calls a tool") as refusal:
        request_for(*called)
    assert refusal.value.param == "messages[1]"


@pytest.mark.parametrize(
    ("content", "fields", "param"),
    [
        ("The best is ", {}, "messages[1]"),
        ("The best is\n", {}, "messages[1]"),
        (
            "{",
            {"output_format": {"type": "json_schema", "schema": {"type": "object"}}},
            "output_format.schema",
        ),
        ("I", {"tools": [TOOL], "tool_choice": {"type": "any"}}, "tool_choice"),
        ("I", {"tools": [TOOL | {"strict": True}]}, "tools"),
    ],
)
def test_a_beginning_that_can_t_be_gone_on_with_is_refused(
    content: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        request_for(BEGUN[0], {"role": "assistant", "content": content}, **fields)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": -1},
        {"top_k": -1},
        {"temperature": 3},
        {"stop_sequences": [""]},
        {"messages": []},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "mood": "good"}]},
        {"thinking": {"type": "sometimes"}},
        {"thinking": {"type": "enabled", "budget_tokens": 100}},
        {"output_config": {"effort": "none"}},
    ],
)
def test_values_out_of_range_do_not_validate(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request_for(**fields)


def test_a_prompt_that_is_only_to_be_kept_asks_for_no_token_there_and_back() -> None:
    request = request_for(max_tokens=0)
    assert request.max_tokens == 0
    assert message_body(request, SIGNER)["max_tokens"] == 0


def placed(path: str, value: Any) -> dict[str, Any]:
    """A body with `value` at a path of the tables."""
    kind, _, name = path.rpartition(".")
    if kind == "tools[]":
        return body(tools=[TOOL | {name: value}])
    if kind == "content[]":
        return body(user(text("Hi", **{name: value})))
    return body(**({kind: {name: value}} if kind else {name: value}))


def asked(fields: dict[str, Any]) -> ChatRequest:
    return message_request(MessagesBody.model_validate(fields), ORIGIN, SIGNER)


NESTED = ("tools[].cache_control", "content[].cache_control")


@pytest.mark.parametrize("path", [*sorted(HARMLESS), *NESTED])
def test_what_can_not_change_an_answer_is_accepted_whatever_it_says(path: str) -> None:
    assert asked(placed(path, {"any": "thing"})) == asked(placed(path, None))


@pytest.mark.parametrize(
    ("path", "value"),
    [(path, value) for path, values in NEUTRAL_VALUES.items() for value in (None, *values)],
)
def test_a_value_that_means_not_used_changes_nothing(path: str, value: Any) -> None:
    without = placed(path, value)
    for container in (*without.get("tools", ()), *without["messages"][0]["content"], without):
        if isinstance(container, dict):
            container.pop(path.rpartition(".")[2], None)
    assert asked(placed(path, value)) == asked(without)


@pytest.mark.parametrize("path", [*NEUTRAL_VALUES, "nonsense", "tools[].nonsense"])
def test_any_other_value_of_it_is_refused_by_name(path: str) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        asked(placed(path, "something else"))
    place = path.replace("tools[]", "tools[0]").replace("content[]", "messages[0].content[0]")
    assert refusal.value.param == place


def test_zero_is_not_taken_for_false() -> None:
    with pytest.raises(UnsupportedParameter):
        asked(placed("tools[].defer_loading", 0))


def test_a_count_takes_the_body_of_the_message_that_is_to_follow() -> None:
    follows = dict.fromkeys(HARMLESS_TO_A_COUNT, 1)
    assert counted(**follows) == counted()
    with pytest.raises(UnsupportedParameter):
        counted(nonsense=1)


THOUGHT_SAID_AND_CALLED: tuple[ChatEvent, ...] = (
    Started("m", Timeline(prompt_tokens=7, cached_tokens=4)),
    ReasoningDelta("Let me"),
    ReasoningDelta(" look."),
    TextDelta("I "),
    TextDelta("look."),
    ToolCallStarted(0, "c0", "look"),
    ToolCallDelta(0, '{"at":'),
    ToolCallDelta(0, " 3}"),
    ToolCallStarted(1, "c1", "wait"),
    Finished("tool_calls", Usage(7, 9, cached_tokens=4, reasoning_tokens=2)),
)


async def replayed(*events: ChatEvent) -> AsyncGenerator[ChatEvent, None]:
    for event in events:
        yield event


async def streamed(
    *events: ChatEvent, shows_thinking: bool = True, **fields: Any
) -> list[dict[str, Any]]:
    """The payloads of a stream, each of which must be named as its `event:` line says."""
    chunks = to_events(replayed(*events), request_for(**fields), SIGNER, shows_thinking)
    frames = b"".join([chunk async for chunk in chunks]).decode().split("\n\n")
    assert frames.pop() == ""
    payloads = []
    for frame in frames:
        name, payload = frame.split("\n")
        payloads.append(json.loads(payload.removeprefix("data: ")))
        assert name == f"event: {payloads[-1]['type']}"
    return payloads


async def test_an_answer_is_streamed_as_blocks_that_follow_each_other() -> None:
    start, *events, end, stop = await streamed(*THOUGHT_SAID_AND_CALLED)
    assert start["message"]["id"] == "msg_request-1"
    assert start["message"]["usage"]["input_tokens"] == 3
    assert start["message"]["usage"]["cache_read_input_tokens"] == 4
    signature = SIGNER.sign("Let me look.", is_shown=True)
    assert events == [
        began(0, {"type": "thinking", "thinking": "", "signature": ""}),
        more(0, type="thinking_delta", thinking="Let me"),
        more(0, type="thinking_delta", thinking=" look."),
        more(0, type="signature_delta", signature=signature),
        over(0),
        began(1, {"type": "text", "text": ""}),
        more(1, type="text_delta", text="I "),
        more(1, type="text_delta", text="look."),
        over(1),
        began(2, {"type": "tool_use", "id": "c0", "name": "look", "input": {}}),
        more(2, type="input_json_delta", partial_json='{"at":'),
        more(2, type="input_json_delta", partial_json=" 3}"),
        over(2),
        began(3, {"type": "tool_use", "id": "c1", "name": "wait", "input": {}}),
        over(3),
    ]
    assert end["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert end["usage"]["output_tokens_details"] == {"thinking_tokens": 2}
    assert stop == {"type": "message_stop"}


def began(index: int, block: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def more(index: int, **delta: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def over(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


async def test_every_event_and_the_whole_message_are_what_the_sdk_s_types_say() -> None:
    events = TypeAdapter[Any](RawMessageStreamEvent)
    for payload in await streamed(*THOUGHT_SAID_AND_CALLED):
        events.validate_python(payload)
    SdkMessage.model_validate(await whole(*THOUGHT_SAID_AND_CALLED))


async def whole(*events: ChatEvent, shows_thinking: bool = True, **fields: Any) -> dict[str, Any]:
    answer = await collect(replayed(*events))
    return to_message(answer, request_for(**fields), SIGNER, shows_thinking)


@pytest.mark.parametrize("written", ['{"a": xx}}', '{"a": "\\ud800"}', '{"n": 1e999}', '["x"]'])
async def test_arguments_that_are_no_object_reach_the_client_as_they_were_written(
    written: str,
) -> None:
    call = (ToolCallStarted(0, "c0", "look"), ToolCallDelta(0, written))
    message = await whole(Started("m", Timeline()), *call, Finished("tool_calls", Usage(3, 1)))
    (block,) = SdkMessage.model_validate_json(bytes(JSONResponse(message).body)).content
    assert block.type == "tool_use"
    assert block.input == {"INVALID_JSON": written}


@pytest.mark.parametrize(
    ("made", "told"), [("call_0a1b", "toolu_0a1b"), ("0a1b2c3d4", "0a1b2c3d4")]
)
async def test_the_id_of_a_call_begins_as_this_api_s_do(made: str, told: str) -> None:
    call = (ToolCallStarted(0, made, "look"), ToolCallDelta(0, "{}"))
    answer = (Started("m", Timeline()), *call, Finished("tool_calls", Usage(3, 1)))
    [block] = (await whole(*answer))["content"]
    [begun] = [one for one in await streamed(*answer) if one["type"] == "content_block_start"]
    assert block["id"] == begun["content_block"]["id"] == told
    # It comes back as it was told, and so does the result's.
    assert messages_of(assistant(block))[0].tool_calls[0].id == told


async def test_the_same_events_make_the_whole_message() -> None:
    message = await whole(*THOUGHT_SAID_AND_CALLED)
    thinking, *others = message["content"]
    assert thinking["thinking"] == "Let me look."
    assert SIGNER.is_ours(thinking["thinking"], thinking["signature"])
    assert others == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "c0", "name": "look", "input": {"at": 3}},
        {"type": "tool_use", "id": "c1", "name": "wait", "input": {}},
    ]
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)
    assert message["usage"] == {
        "input_tokens": 3,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 2},
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "server_tool_use": None,
        "service_tier": "standard",
    }
    # What Anthropic knows of a request's place, speed and price is nobody's here.
    assert SdkUsage.model_fields.keys() - message["usage"].keys() == {"inference_geo", "speed"}


async def test_an_answer_comes_back_as_it_was_given_out() -> None:
    given = {"role": "assistant", "content": (await whole(*THOUGHT_SAID_AND_CALLED))["content"]}
    calls = (ToolCall("c0", "look", {"at": 3}), ToolCall("c1", "wait", {}))
    assert messages_of(given) == (
        Message("assistant", "I look.", tool_calls=calls, reasoning="Let me look."),
    )


async def test_thinking_that_is_not_to_be_shown_is_only_signed() -> None:
    events = await streamed(*THOUGHT_SAID_AND_CALLED, shows_thinking=False)
    _, begin, signed, end, *_ = events
    assert [begin["type"], end["type"]] == ["content_block_start", "content_block_stop"]
    message = await whole(*THOUGHT_SAID_AND_CALLED, shows_thinking=False)
    block = message["content"][0]
    assert (block["thinking"], block["signature"]) == ("", signed["delta"]["signature"])
    assert "look." not in json.dumps(events[:4])
    assert messages_of(assistant(block))[0].reasoning == "Let me look."


async def test_text_of_every_kind_survives_the_frames() -> None:
    texts = (
        '"quoted" \\ /',
        "line\nbreak\r\n",
        "日本語 😀",
        "\x00\x1b",
        'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    )
    deltas = map(TextDelta, texts)
    events = await streamed(Started("m", Timeline()), *deltas, Finished("stop", Usage(3, 5)))
    told = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert told == list(texts)


@pytest.mark.parametrize(
    ("finished", "reason"),
    [
        (Finished("stop", Usage(3, 2)), "end_turn"),
        (Finished("stop", Usage(3, 2), "END"), "stop_sequence"),
        (Finished("length", Usage(3, 9)), "max_tokens"),
        (Finished("length", Usage(3, 2)), "model_context_window_exceeded"),
        (Finished("tool_calls", Usage(3, 2)), "tool_use"),
    ],
)
async def test_why_an_answer_ended_is_said_in_anthropics_words(
    finished: Finished, reason: str
) -> None:
    events = (Started("m", Timeline()), TextDelta("a"), finished)
    message, end = await whole(*events), (await streamed(*events))[-2]
    for told in (message, end["delta"]):
        assert (told["stop_reason"], told["stop_sequence"]) == (reason, finished.stop_string)


async def test_an_empty_answer_has_no_blocks() -> None:
    events = (Started("m", Timeline()), Finished("stop", Usage(3, 1)))
    assert (await whole(*events))["content"] == []
    kinds = [event["type"] for event in await streamed(*events)]
    assert kinds == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [("", {}), ('{"a": [1, 2', {"a": [1, 2]}), ('{"a": 1, "b": "c', {"a": 1})],
)
async def test_arguments_that_were_cut_short_are_read_up_to_there(
    arguments: str, read: dict[str, Any]
) -> None:
    call = ToolCallStarted(0, "c0", "look")
    message = await whole(
        Started("m", Timeline()),
        call,
        ToolCallDelta(0, arguments),
        Finished("length", Usage(3, 9)),
    )
    assert message["content"][0]["input"] == read


@pytest.mark.parametrize(
    ("query", "ids", "has_more"),
    [
        ({}, "abcde", False),
        ({"limit": "2"}, "ab", True),
        ({"limit": "2", "after_id": "b"}, "cd", True),
        ({"limit": "2", "after_id": "d"}, "e", False),
        ({"limit": "2", "before_id": "e"}, "cd", True),
        ({"limit": "2", "before_id": "b"}, "a", False),
        ({"after_id": "e"}, "", False),
        ({"lifecycle[]": "active"}, "abcde", False),
        ({"lifecycle": "retired", "lifecycle[]": "active"}, "abcde", False),
        ({"lifecycle[]": "retired"}, "", False),
        ({"workspace_id": "wrkspc_1", "beta": "true"}, "abcde", False),
    ],
)
def test_models_come_in_pages(query: dict[str, str], ids: str, has_more: bool) -> None:
    models = [model_info(model_id, model_id, 0, Abilities()) for model_id in "abcde"]
    page = models_page(models, models_query(query.items()))
    assert "".join(model["id"] for model in page["data"]) == ids
    assert page["has_more"] is has_more
    assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


@pytest.mark.parametrize("kind", [ModelInfo, BetaModelInfo])
@pytest.mark.parametrize(
    "abilities", [Abilities(), Abilities(8192, thinks=True, reads_effort=True), Abilities(512, makes_text=False)]
)  # fmt: skip
def test_a_model_has_every_field_of_the_sdk_s_type_and_no_other(
    kind: Any, abilities: Abilities
) -> None:
    told = json.dumps(model_info("a/b", "A B", 1_700_000_000, abilities))
    model = TypeAdapter(kind).validate_json(told, strict=True)
    assert extras_of(model) == set()
    # What is Anthropic's alone.
    assert set(kind.model_fields) - set(json.loads(told)) <= {"allowed_fallback_models"}
    assert (model.id, model.display_name) == ("a/b", "A B")
    assert model.max_input_tokens == abilities.context_tokens
    assert model.max_tokens == (abilities.context_tokens if abilities.makes_text else None)
    found = model.capabilities
    assert found.thinking.supported is found.thinking.types.enabled.supported is abilities.thinks
    assert found.effort.supported is found.effort.low.supported is abilities.reads_effort
    assert found.structured_outputs.supported is abilities.makes_text


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"after_id": "x"}, {"lifecycle": "gone"}, {"foo": "1"}]
)
def test_a_page_that_there_is_not_is_refused_by_name(query: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        models_page([], models_query(query.items()))
    assert refusal.value.param == next(iter(query))


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, InvalidRequest.code, "invalid_request_error"),
        (401, "invalid_api_key", "authentication_error"),
        (403, "forbidden", "permission_error"),
        (404, "model_not_found", "not_found_error"),
        (405, "method_not_allowed", "invalid_request_error"),
        (413, "content_too_large", "request_too_large"),
        (429, "x", "rate_limit_error"),
        (500, "internal_error", "api_error"),
        (503, EngineFailed.code, "api_error"),
        (503, Overloaded.code, "overloaded_error"),
        (503, ShuttingDown.code, "overloaded_error"),
        (504, "request_timeout", "timeout_error"),
    ],
)
def test_an_error_has_the_type_that_goes_with_its_status(status: int, code: str, kind: str) -> None:
    assert error_body("m", status=status, code=code, request_id="r") == {
        "type": "error",
        "error": {"type": kind, "message": "m"},
        "request_id": "r",
    }


def test_an_error_in_a_stream_is_an_event_of_its_own() -> None:
    name, payload, *_ = error_event(Overloaded("No room."), "r").decode().split("\n")
    assert name == "event: error"
    assert json.loads(payload.removeprefix("data: "))["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize(
    ("path", "headers", "dialect"),
    [
        ("/v1/messages", {}, "anthropic"),
        ("/v1/messages/count_tokens", {}, "anthropic"),
        ("/v1/messagesx", {}, "openai"),
        ("/v1/models", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/v1/models/a/b", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/v1/models", {}, "openai"),
        ("/v1/chat/completions", {"anthropic-version": "2023-06-01"}, "openai"),
        ("/v1", {}, "openai"),
        ("/api/requests", {"anthropic-version": "2023-06-01"}, None),
    ],
)
def test_a_path_has_one_dialect(path: str, headers: dict[str, str], dialect: str | None) -> None:
    assert dialect_of(path, headers) == dialect


def test_a_whole_answer_without_thinking_has_text_only() -> None:
    message = to_message(Answer("m", "Hi", "stop", Usage(3, 1)), request_for(), SIGNER, True)
    assert message["content"] == [{"type": "text", "text": "Hi"}]
