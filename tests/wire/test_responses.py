"""The Responses API's JSON to chat requests and back: pure, no server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter, ValidationError

from mlx_manager.chat.events import (
    BETWEEN_MESSAGES,
    ChatEvent,
    Finished,
    FinishReason,
    LikelyToken,
    ReasoningDelta,
    Started,
    TextDelta,
    Timeline,
    TokenLogprobs,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from mlx_manager.chat.request import (
    AnswerFormat,
    ChatRequest,
    Conversation,
    Message,
    Origin,
    Tool,
    ToolCall,
    ToolChoice,
)
from mlx_manager.errors import EngineFailed, InvalidRequest, UnsupportedParameter
from mlx_manager.wire.openai.responses.items import (
    input_items,
    messages_of,
    referred_ids,
    response_of,
)
from mlx_manager.wire.openai.responses.objects import including, items_page, new_response
from mlx_manager.wire.openai.responses.parameters import HARMLESS, NEUTRAL_VALUES
from mlx_manager.wire.openai.responses.requests import check_body, response_request
from mlx_manager.wire.openai.responses.schema import ResponsesBody
from mlx_manager.wire.openai.responses.streams import ResponseWriter
from mlx_manager.wire.signature import Signer

ORIGIN = Origin("request-1", "/v1/responses")
SIGNER = Signer(b"a key of this process")
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": 3}'}
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
ANSWER: list[ChatEvent] = [
    ReasoningDelta("Let me "),
    ReasoningDelta("look."),
    TextDelta("I "),
    TextDelta("look…"),
    ToolCallStarted(0, "c1", "look"),
    ToolCallDelta(0, '{"at":'),
    ToolCallDelta(0, " 3}"),
]


def body_for(**fields: Any) -> ResponsesBody:
    return ResponsesBody.model_validate({"model": "m", "input": "Hi"} | fields)


def request_for(**fields: Any) -> ChatRequest:
    body = body_for(**fields)
    check_body(body)
    referred_ids(body.input)
    return response_request(body, ORIGIN, input_items(body.input, ORIGIN.request_id, SIGNER))


def conversation_of(**fields: Any) -> Conversation:
    found = request_for(**fields).input
    assert isinstance(found, Conversation)
    return found


def written(
    events: list[ChatEvent], reason: FinishReason | None = "stop", **fields: Any
) -> tuple[ResponseWriter, list[dict[str, Any]]]:
    """The writer after an answer, and the payloads of its stream; without a reason it isn't finished."""
    body = body_for(**fields)
    request = request_for(**fields)
    writer = ResponseWriter(
        request, new_response(body, request.response_id, 1_700_000_000, "in_progress")
    )
    frames = writer.see(Started("m-1", Timeline()))
    for event in events:
        frames += writer.see(event)
    if reason is not None:
        frames += writer.see(Finished(reason, Usage(9, 7, 4, 3)))
    return writer, payloads(frames)


def payloads(frames: bytes) -> list[dict[str, Any]]:
    found = []
    for frame in frames.decode().removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        payload = json.loads(data.removeprefix("data: "))
        assert name == f"event: {payload['type']}"
        found.append(payload)
    return found


def test_a_text_is_what_the_user_says_and_instructions_stand_before_it() -> None:
    assert conversation_of(instructions="Be brief.").messages == (
        Message("system", "Be brief."),
        Message("user", "Hi"),
    )


def test_items_become_turns_and_what_an_assistant_did_in_one_is_one_message() -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Look"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        CALL,
        {"type": "function_call_output", "call_id": "c1", "output": "a cat"},
        {"role": "assistant", "content": "A cat."},
        {"role": "assistant", "content": "Really."},
    ]
    call = ToolCall("c1", "look", {"at": 3})
    assert conversation_of(input=items).messages == (
        Message("system", "Be brief."),
        Message("user", "Look"),
        Message("assistant", "I look.", tool_calls=(call,), reasoning="Hm."),
        Message("tool", "a cat", tool_call_id="c1"),
        Message("assistant", "A cat."),
        Message("assistant", "Really."),
    )


def test_an_id_that_was_made_here_says_which_response_it_belongs_to() -> None:
    writer, _ = written(ANSWER, "tool_calls", tools=[LOOK])
    output = {"type": "function_call_output", "call_id": "c1", "output": "a cat"}
    thought = {"type": "reasoning", "summary": []}
    hello = {"role": "user", "content": "Hi"}
    brought = input_items(body_for(input=[hello, thought, CALL, output]).input, "request-1", SIGNER)
    found = [response_of(one["id"]) for one in [*writer.response["output"], *brought]]
    assert found == ["resp_request-1"] * 7
    assert response_of("msg_of_3_in4") == "resp_of_3"
    assert response_of("msg_mine") is None


def test_what_is_referred_to_stands_where_its_reference_does() -> None:
    stored = {"msg_a_0": {"id": "msg_a_0", "type": "message"}}
    hello = {"role": "user", "content": "Hi"}
    # Its type may be left out.
    for reference in ({"id": "msg_a_0"}, {"id": "msg_a_0", "type": "item_reference"}):
        items = body_for(input=[hello, reference, hello]).input
        assert referred_ids(items) == {"msg_a_0"}
        assert input_items(items, "b", SIGNER, stored)[1] == stored["msg_a_0"]
    with pytest.raises(InvalidRequest, match="Refer to it once") as refused:
        referred_ids([*items, *items])
    assert refused.value.param == "input[4].id"


def test_a_call_that_was_cut_short_says_what_it_said() -> None:
    cut = CALL | {"arguments": '{"at": 3, "wh', "status": "incomplete"}
    [message] = conversation_of(input=[cut]).messages
    assert message.tool_calls[0].arguments == {"at": 3}


def test_a_call_that_the_model_wrote_as_no_json_can_be_gone_on_from() -> None:
    events: list[ChatEvent] = [ToolCallStarted(0, "c1", "look"), ToolCallDelta(0, "at: 3")]
    writer, _ = written(events, "tool_calls", tools=[LOOK])
    [message] = messages_of(writer.response["output"])
    assert message.tool_calls == (ToolCall("c1", "look", {"INVALID_JSON": "at: 3"}),)


def test_tools_controls_and_formats_are_what_they_are_in_a_chat() -> None:
    schema = {"type": "object"}
    request = request_for(
        tools=[LOOK],
        tool_choice={"type": "function", "name": "look"},
        parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "schema": schema}},
        max_output_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        top_logprobs=2,
        include=[LOGPROBS, "reasoning.encrypted_content"],
    )
    conversation = request.input
    assert isinstance(conversation, Conversation)
    assert conversation.tools == (Tool("look", None, {"type": "object"}, is_strict=True),)
    assert conversation.tool_choice == ToolChoice("required", "look", is_parallel=False)
    assert conversation.thinking is True
    assert conversation.template_arguments == {"reasoning_effort": "low"}
    assert request.format == AnswerFormat("json_schema", schema, "text.format.schema")
    assert (request.max_tokens, request.sampling.temperature, request.sampling.top_p) == (
        5,
        0.5,
        0.9,
    )
    assert (request.sampling.seed, request.sampling.top_logprobs) == (3, 2)
    assert request.response_id == "resp_request-1"


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [fields]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        (item(type="item_reference"), "input[0].id"),
        (item(type="web_search_call"), "input[0].type"),
        (item(role="user"), "input[0].content"),
        (item(content="a"), "input[0].role"),
        (item(role="user", content=[{"type": "input_image"}]), "input[0].content[0]"),
        (item(role="user", content=[{"type": "input_file"}]), "input[0].content[0]"),
        (item(**CALL | {"arguments": "[1]"}), "input[0].arguments"),
        (item(**CALL | {"arguments": '{"a'}), "input[0].arguments"),
        (item(**CALL | {"call_id": ""}), "input[0].call_id"),
        (item(type="function_call_output", call_id="c"), "input[0].output"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [LOOK | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "no"}}, "tool_choice"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"background": True, "store": False}, "store"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm"),
        (
            item(type="function_call_output", call_id="c", output=[{"type": "input_audio"}]),
            "input[0].output[0]",
        ),
        (
            item(
                type="function_call_output",
                call_id="c",
                output=[{"type": "input_text", "text": "a"}, {"type": "input_audio"}],
            ),
            "input[0].output[1]",
        ),
        ({"min_tokens": 5, "max_output_tokens": 4}, "min_tokens"),
        ({"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
         "structured_outputs.regex"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request_for(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    "fields", [{"text": {"verbosity": "low"}}, {"verbosity": "low", "text": {"verbosity": "low"}}]
)
def test_how_long_an_answer_is_to_be_is_told_to_the_template(fields: dict[str, Any]) -> None:
    conversation = request_for(**fields).input
    assert isinstance(conversation, Conversation)
    assert conversation.template_arguments == {"verbosity": "low"}
    with pytest.raises(InvalidRequest) as refused:
        request_for(verbosity="high", text={"verbosity": "low"})
    assert refused.value.param == "verbosity"


@pytest.mark.parametrize("name", ["summary", "generate_summary"])
@pytest.mark.parametrize(
    ("value", "is_unheld"), [("auto", True), ("concise", True), ("detailed", True), ("none", False)]
)
def test_a_summary_of_thoughts_is_asked_for_and_never_written(
    name: str, value: str, is_unheld: bool
) -> None:
    conversation = request_for(reasoning={name: value}).input
    assert isinstance(conversation, Conversation)
    assert conversation.unheld == ((f"reasoning.{name}",) if is_unheld else ())


def test_what_was_left_open_is_told_once_it_is_known() -> None:
    body, request = body_for(background=True), request_for()
    writer = ResponseWriter(request, new_response(body, request.response_id, 1, "queued"))
    started = Started("m-1", Timeline(), temperature=0.6, top_p=0.95)
    found = payloads(writer.queue() + writer.see(started))
    told = [(one["response"]["temperature"], one["response"]["top_p"]) for one in found]
    assert told == [(None, None), (None, None), (0.6, 0.95)]


SAID = {"type": "message", "role": "assistant", "content": "I look."}
TEXT_PART = {"type": "output_text", "text": "I look."}


def placed(path: str, value: Any) -> dict[str, Any]:
    """The fields of a body with `value` at a path of the tables."""
    kind, _, name = path.rpartition(".")
    some = {"type": "allowed_tools", "mode": "auto"}
    match kind:
        case "":
            return {name: value}
        case "tools[]":
            return {"tools": [LOOK | {name: value}]}
        case "tool_choice.tools[]":
            named = {"type": "function", "name": "look", name: value}
            return {"tools": [LOOK], "tool_choice": some | {"tools": [named]}}
        case "input[]":
            return {"input": [CALL | {name: value}]}
        case "input[].content[]":
            return {"input": [SAID | {"content": [TEXT_PART | {name: value}]}]}
        case _:
            return {kind: {name: value}}


@pytest.mark.parametrize(
    ("path", "value"),
    [(path, value) for path, values in NEUTRAL_VALUES.items() for value in (None, *values)],
)
def test_what_real_clients_send_to_say_not_used_is_accepted(path: str, value: Any) -> None:
    request_for(**placed(path, value))


@pytest.mark.parametrize("path", sorted(NEUTRAL_VALUES))
def test_any_other_value_is_refused_by_its_path(path: str) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        request_for(**placed(path, "something else"))
    assert refused.value.param == path.replace("[]", "[0]")


@pytest.mark.parametrize("path", sorted(HARMLESS))
def test_what_can_not_change_an_answer_is_accepted_whatever_it_says(path: str) -> None:
    anything = request_for(**placed(path, {"any": ["thing"]}))
    assert anything.input == request_for(**placed(path, None)).input


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (CALL | {"foo": 1}, "input[1].foo"),
        (SAID | {"foo": 1}, "input[1].foo"),
        (SAID | {"content": [TEXT_PART, TEXT_PART | {"foo": 1}]}, "input[1].content[1].foo"),
        ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "a", "foo": 1}]},
         "input[1].summary[0].foo"),
        ({"type": "function_call_output", "call_id": "c1",
          "output": [{"type": "input_image", "foo": 1}, {"type": "input_text", "text": "a", "foo": 1}]},
         "input[1].output[1].foo"),
        ({"type": "item_reference", "id": "msg_1", "foo": 1}, "input[1].foo"),
        # What is a field of other items would be lost just so.
        (SAID | {"arguments": "{}"}, "input[1].arguments"),
        (CALL | {"phase": "commentary"}, "input[1].phase"),
        (CALL | {"caller": {"type": "program", "caller_id": "p"}}, "input[1].caller"),
        (CALL | {"async": True}, "input[1].async"),
    ],
)  # fmt: skip
def test_a_field_of_an_item_that_nobody_knows_is_refused_by_its_path(
    given: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        request_for(input=[{"role": "user", "content": "Hi"}, given])
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "function", "name": "look", "foo": 1}, "tool_choice.foo"),
        (
            {"type": "allowed_tools", "mode": "auto",
             "tools": [{"type": "function", "name": "look", "foo": 1}]},
            "tool_choice.tools[0].foo",
        ),
    ],
)  # fmt: skip
def test_a_field_of_a_choice_that_nobody_knows_is_refused_by_its_path(
    choice: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        request_for(tools=[LOOK], tool_choice=choice)
    assert refused.value.param == param


def test_what_an_assistant_s_message_was_is_kept_and_handed_on() -> None:
    items = [
        {"role": "user", "content": "Look"},
        SAID | {"phase": "commentary"},
        CALL,
        {"type": "function_call_output", "call_id": "c1", "output": "a cat"},
        SAID | {"content": [TEXT_PART], "phase": "final_answer"},
        SAID | {"phase": None},
    ]
    kept = input_items(body_for(input=items).input, "request-1", SIGNER)
    assert [item.get("phase") for item in kept if item["type"] == "message"] == [
        None,
        "commentary",
        "final_answer",
        None,
    ]
    assert "phase" not in kept[-1]
    said = [one for one in messages_of(kept) if one.role == "assistant"]
    assert [one.phase for one in said] == ["commentary", "final_answer", None]
    assert said[0].tool_calls
    with pytest.raises(ValidationError):
        body_for(input=[SAID | {"phase": "prologue"}])


LOOKED = TextDelta("I look.", phase="commentary")
ANSWERED = TextDelta(f"{BETWEEN_MESSAGES}A cat.", phase="final_answer")


@pytest.mark.parametrize(
    "between",
    [
        [],
        [ReasoningDelta("Hm.")],
        [ToolCallStarted(0, "c1", "look"), ToolCallDelta(0, "{}")],
        # Said of no message by itself: it belongs to the one before.
        [TextDelta("..")],
    ],
    ids=["nothing", "a thought", "a call", "more"],
)
def test_what_a_model_says_while_it_works_is_a_message_of_its_own(between: list[ChatEvent]) -> None:
    events = [LOOKED, *between, ANSWERED, TextDelta("\n\nBlack.", phase="final_answer")]
    writer, frames = written(events)
    output = writer.response["output"]
    more = "".join(one.text for one in between if isinstance(one, TextDelta))
    found = [
        (item["phase"], item["content"][0]["text"]) for item in output if item["type"] == "message"
    ]
    assert found == [("commentary", f"I look.{more}"), ("final_answer", "A cat.\n\nBlack.")]
    for frame in frames:
        if frame["type"] in ("response.output_item.added", "response.output_item.done"):
            assert frame["item"].get("phase") == output[frame["output_index"]].get("phase")
    deltas = [one["delta"] for one in frames if one["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "".join(text for _, text in found)
    # What goes on from it says of each what it was.
    Response.model_validate(writer.response)
    said = [one for one in messages_of(output) if one.role == "assistant"]
    assert [one.phase for one in said if one.content] == ["commentary", "final_answer"]


def test_thoughts_between_two_messages_of_a_kind_part_them() -> None:
    later = TextDelta(f"{BETWEEN_MESSAGES}I look again.", phase="commentary")
    writer, _ = written([LOOKED, ReasoningDelta("Hm."), later, ANSWERED])
    messages = [item for item in writer.response["output"] if item["type"] == "message"]
    texts = [item["content"][0]["text"] for item in messages]
    assert texts == ["I look.", "I look again.", "A cat."]


def test_what_stands_beside_an_assistant_s_text_is_kept() -> None:
    cited = {
        "type": "url_citation",
        "url": "https://a",
        "title": "A",
        "start_index": 0,
        "end_index": 1,
    }
    token = {"token": "I", "logprob": -0.5, "bytes": [73], "top_logprobs": []}
    part = TEXT_PART | {"annotations": [cited], "logprobs": [token]}
    [kept] = input_items(body_for(input=[SAID | {"content": [part]}]).input, "r", SIGNER)
    assert kept["content"] == [part]
    [plain] = input_items(body_for(input=[SAID]).input, "r", SIGNER)
    assert plain["content"] == [TEXT_PART | {"annotations": []}]


def test_the_group_of_a_tool_s_result_is_kept_and_the_model_knows_the_tool_by_it() -> None:
    output = {"type": "function_call_output", "call_id": "c1", "output": "a cat", "name": "look"}
    items = [CALL | {"namespace": "eyes"}, output | {"namespace": "eyes"}]
    kept = input_items(body_for(input=items).input, "r", SIGNER)
    assert [item["namespace"] for item in kept] == ["eyes", "eyes"]
    call, result = messages_of(kept)
    assert (call.tool_calls[0].name, result.name) == ("eyes__look", "eyes__look")


def test_a_refusal_names_what_would_be_accepted() -> None:
    with pytest.raises(UnsupportedParameter, match="send 'disabled'"):
        request_for(truncation="auto")


def test_a_streams_events_are_those_of_the_sdk_and_are_numbered() -> None:
    _, found = written(ANSWER, "tool_calls", tools=[LOOK])
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for payload in found:
        adapter.validate_python(payload)
    assert [payload["sequence_number"] for payload in found] == list(range(len(found)))
    reasoning = ["response.reasoning_text.delta"] * 2 + ["response.reasoning_text.done"]
    text = ["response.output_text.delta"] * 2 + ["response.output_text.done"]
    arguments = ["response.function_call_arguments.delta"] * 2
    opened = ["response.output_item.added", "response.content_part.added"]
    closed = ["response.content_part.done", "response.output_item.done"]
    assert [payload["type"] for payload in found] == [
        "response.created",
        "response.in_progress",
        *opened, *reasoning, *closed,
        *opened, *text, *closed,
        "response.output_item.added", *arguments, "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]  # fmt: skip
    indexes = [payload["output_index"] for payload in found if "output_index" in payload]
    assert indexes == sorted(indexes)
    assert set(indexes) == {0, 1, 2}


# In what OpenAI's own API sends, and in no type of the SDK.
SENT_BESIDES = {"store", "bytes"}


def unknown_to_the_sdk(value: Any) -> set[str]:
    """The fields of an event, at any depth, that the SDK's types don't have."""
    if isinstance(value, list):
        return {name for one in value for name in unknown_to_the_sdk(one)}
    if not isinstance(value, BaseModel):
        return set()
    inner = {
        name
        for field in type(value).model_fields
        for name in unknown_to_the_sdk(getattr(value, field))
    }
    return inner | set(value.model_extra or {})


def test_events_have_no_field_that_the_sdk_does_not_know() -> None:
    token = LikelyToken(b"I", -0.5)
    spoken = TextDelta("I", (TokenLogprobs(token, (token,), 0),))
    _, whole = written(
        [ReasoningDelta("Hm."), spoken, *ANSWER[4:]],
        "tool_calls",
        tools=[LOOK],
        include=[LOGPROBS],
        reasoning={"effort": "low"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        metadata={"a": "b"},
    )
    failing, _ = written([TextDelta("Half")], None)
    _, cut = written([TextDelta("Half")], "length")
    failed = payloads(failing.fail(EngineFailed("The engine died.")))
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for payload in [*whole, *failed, *cut]:
        unknown = unknown_to_the_sdk(adapter.validate_python(payload))
        assert unknown <= SENT_BESIDES, payload["type"]


def test_deltas_add_up_to_what_is_done_and_to_the_response() -> None:
    writer, found = written(ANSWER, "tool_calls", tools=[LOOK])
    for kind, whole in (
        ("reasoning_text", "text"),
        ("output_text", "text"),
        ("function_call_arguments", "arguments"),
    ):
        deltas = [one["delta"] for one in found if one["type"] == f"response.{kind}.delta"]
        [done] = [one[whole] for one in found if one["type"] == f"response.{kind}.done"]
        assert "".join(deltas) == done
    response = Response.model_validate(writer.response)
    assert found[-1]["response"] == writer.response
    assert response.output_text == "I look…"
    assert [one.type for one in response.output] == ["reasoning", "message", "function_call"]
    assert all(one["status"] == "completed" for one in writer.response["output"])
    assert response.usage is not None
    assert response.usage.model_dump(exclude_none=True) == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 16,
    }


def test_an_answer_goes_back_into_the_next_request_as_it_was() -> None:
    writer, _ = written(ANSWER, "tool_calls", tools=[LOOK])
    [message] = conversation_of(input=writer.response["output"]).messages
    call = ToolCall("c1", "look", {"at": 3})
    assert message == Message("assistant", "I look…", tool_calls=(call,), reasoning="Let me look.")


def test_an_answer_that_was_cut_short_says_so_and_so_does_its_last_item() -> None:
    writer, found = written([ReasoningDelta("Hm."), TextDelta("On")], "length")
    assert found[-1]["type"] == "response.incomplete"
    assert writer.response["status"] == "incomplete"
    assert writer.response["incomplete_details"] == {"reason": "max_output_tokens"}
    statuses = [one["status"] for one in writer.response["output"]]
    assert statuses == ["completed", "incomplete"]


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    writer, found = written([])
    assert Response.model_validate(writer.response).output_text == ""
    assert [one["type"] for one in writer.response["output"]] == ["message"]
    assert found[-1]["type"] == "response.completed"


def test_an_error_in_mid_stream_is_a_failed_response_with_what_there_was() -> None:
    writer, _ = written([TextDelta("Half")], None)
    found = payloads(writer.fail(EngineFailed("The engine died.")))
    assert found[-1]["type"] == "response.failed"
    response = Response.model_validate(found[-1]["response"])
    assert (response.status, response.output_text) == ("failed", "Half")
    assert response.error is not None
    assert (response.error.code, response.error.message) == ("server_error", "The engine died.")
    assert writer.is_over


def test_a_cancelled_response_keeps_what_there_was_and_ends_by_an_event_that_clients_know() -> None:
    writer, begun = written([TextDelta("Half")], None)
    found = payloads(writer.cancel())
    response = Response.model_validate(writer.response)
    assert (response.status, response.output_text) == ("cancelled", "Half")
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for payload in found:
        adapter.validate_python(payload)
    assert [one["type"] for one in found[-2:]] == [
        "response.output_item.done",
        "response.incomplete",
    ]
    assert found[-1]["response"]["status"] == "cancelled"
    assert found[0]["sequence_number"] == len(begun)


def test_a_response_that_waits_is_told_at_once_and_created_once() -> None:
    request = request_for(background=True, stream=True)
    body = body_for(background=True, stream=True)
    writer = ResponseWriter(request, new_response(body, request.response_id, 5, "queued"))
    found = payloads(writer.queue() + writer.see(Started("m-1", Timeline())))
    kinds = ["response.created", "response.queued", "response.in_progress"]
    assert [one["type"] for one in found] == kinds
    assert [one["sequence_number"] for one in found] == [0, 1, 2]
    assert [one["response"]["status"] for one in found] == ["queued", "queued", "in_progress"]


def test_reasoning_comes_back_by_its_encrypted_content_alone() -> None:
    body = body_for(include=[ENCRYPTED])
    request = request_for(include=[ENCRYPTED])
    writer = ResponseWriter(
        request, new_response(body, request.response_id, 5, "in_progress"), SIGNER
    )
    frames = writer.see(Started("m-1", Timeline())) + writer.see(ReasoningDelta("Let me look. 😀"))
    frames += writer.see(TextDelta("A cat.")) + writer.see(Finished("stop", Usage(9, 7)))
    [thought, said] = writer.response["output"]
    done = [one["item"] for one in payloads(frames) if one["type"] == "response.output_item.done"]
    assert done[0]["encrypted_content"] == thought["encrypted_content"]
    sealed = {key: thought[key] for key in ("type", "id", "encrypted_content")} | {"summary": []}
    again = Message("assistant", "A cat.", reasoning="Let me look. 😀")
    assert conversation_of(input=[sealed, said]).messages == (again,)
    foreign = sealed | {"encrypted_content": Signer(b"another").sign("Hm.", is_shown=False)}
    assert conversation_of(input=[foreign, said]).messages == (Message("assistant", "A cat."),)


def test_a_stored_response_can_be_asked_for_with_more_than_it_was_made_with() -> None:
    writer, _ = written([ReasoningDelta("Hm."), TextDelta("Yes")])
    assert including(writer.response, [], SIGNER) == writer.response
    thought = including(writer.response, [ENCRYPTED], SIGNER)["output"][0]
    assert SIGNER.read("", thought["encrypted_content"]) == "Hm."
    assert "encrypted_content" not in writer.response["output"][0]
    with pytest.raises(UnsupportedParameter, match="no log-probabilities") as refusal:
        including(writer.response, [LOGPROBS], SIGNER)
    assert refusal.value.param == "include"


def test_of_a_picture_in_a_result_the_model_is_told_and_what_is_kept_says_that_there_was_one() -> (
    None
):
    picture = {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "auto"}
    parts = [{"type": "input_text", "text": "a.png "}, picture]
    output = {"type": "function_call_output", "call_id": "c1", "output": parts}
    body = body_for(input=[CALL, output])
    [_, kept] = input_items(body.input, "r", SIGNER)
    assert kept["output"] == [parts[0], {"type": "input_image"}]
    _, result = messages_of([kept | {"type": "message", "role": "user", "content": []}, kept])
    assert result.content == "a.png [image left out: this model reads text only]"
    assert result.left_out == request_for(input=[CALL, output]).left_out == 1


CODEX_SEARCH = {"type": "web_search", "external_web_access": False}


def test_a_tool_that_only_openai_runs_is_left_out_beside_others() -> None:
    asked = request_for(tools=[CODEX_SEARCH, LOOK, {"type": "image_generation"}])
    assert isinstance(asked.input, Conversation)
    assert [tool.name for tool in asked.input.tools] == [LOOK["name"]]
    assert asked.input.absent_tools == ("tools[0]", "tools[2]")


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "web_search"}, "tool_choice.type"),
        ({"type": "function", "name": "search"}, "tool_choice"),
    ],
)
def test_a_choice_of_a_tool_that_is_left_out_is_told_what_to_do(
    choice: dict[str, Any], param: str
) -> None:
    tools = [LOOK, CODEX_SEARCH | {"name": "search"}]
    with pytest.raises(InvalidRequest, match=r'left out here.*or send "auto"') as refusal:
        request_for(tools=tools, tool_choice=choice)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [CODEX_SEARCH]}, "tools[0].type"),
        ({"tools": [LOOK, {"type": "code_interpreter"}]}, "tools[1].type"),
        (
            {"tools": [LOOK, CODEX_SEARCH], "tool_choice": {"type": "web_search"}},
            "tool_choice.type",
        ),
    ],
)
def test_a_tool_that_a_request_is_about_is_refused_where_only_openai_runs_it(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        request_for(**fields)
    assert refusal.value.param == param


def test_logprobs_come_with_deltas_and_with_the_whole_text() -> None:
    token = LikelyToken(b"I", -0.5)
    events: list[ChatEvent] = [TextDelta("I", (TokenLogprobs(token, (token,), 0),))]
    writer, found = written(events, include=[LOGPROBS], top_logprobs=1)
    entry = {"token": "I", "logprob": -0.5, "bytes": [73]}
    expected = [entry | {"top_logprobs": [entry]}]
    told = [one["logprobs"] for one in found if one["type"].startswith("response.output_text.")]
    assert told == [expected, expected]
    assert writer.response["output"][0]["content"][0]["logprobs"] == expected


def test_pages_of_items_follow_each_other_in_both_orders() -> None:
    items = [{"id": f"i{number}"} for number in range(5)]

    def walked(is_ascending: bool) -> list[str]:
        ids, after = list[str](), None
        while True:
            page = items_page(items, 2, after, is_ascending)
            ids += [one["id"] for one in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], ids[-1])
            after = page["last_id"]
            if not page["has_more"]:
                return ids

    assert walked(True) == ["i0", "i1", "i2", "i3", "i4"]
    assert walked(False) == ["i4", "i3", "i2", "i1", "i0"]
    with pytest.raises(InvalidRequest, match="no item 'i9'"):
        items_page(items, 2, "i9", True)


AGENTS = {
    "type": "namespace",
    "name": "agents",
    "description": "Sub-agents.",
    "tools": [
        LOOK | {"name": "spawn", "description": "Begins one.", "strict": False},
        LOOK | {"name": "wait"},
    ],
}


def test_the_model_knows_functions_of_a_namespace_by_both_names() -> None:
    tools = conversation_of(tools=[LOOK, AGENTS]).tools
    assert [(tool.name, tool.namespace) for tool in tools] == [
        ("look", None),
        ("agents__spawn", "agents"),
        ("agents__wait", "agents"),
    ]
    assert [tool.description for tool in tools] == [None, "Sub-agents.\nBegins one.", None]
    assert [tool.is_strict for tool in tools] == [True, False, True]


def test_a_call_of_one_has_the_names_apart_and_comes_back_as_it_was() -> None:
    events: list[ChatEvent] = [
        ToolCallStarted(0, "c1", "agents__spawn"),
        ToolCallDelta(0, "{}"),
        ToolCallStarted(1, "c2", "look"),
        ToolCallDelta(1, "{}"),
    ]
    writer, found = written(events, "tool_calls", tools=[LOOK, AGENTS])
    spawned, looked = writer.response["output"]
    assert (spawned["namespace"], spawned["name"]) == ("agents", "spawn")
    assert looked["name"] == "look"
    assert "namespace" not in looked
    assert writer.response["tools"][1]["tools"][0]["name"] == "spawn"
    for event in found:
        TypeAdapter[Any](ResponseStreamEvent).validate_python(event)
    [turn] = conversation_of(input=[spawned, looked], tools=[LOOK, AGENTS]).messages
    assert [call.name for call in turn.tool_calls] == ["agents__spawn", "look"]


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{**AGENTS, "name": None}], "tools[0].name"),
        ([{**AGENTS, "tools": [{"type": "custom", "name": "x"}]}], "tools[0].tools[0].type"),
        (
            [{**AGENTS, "tools": [LOOK | {"defer_loading": True}]}],
            "tools[0].tools[0].defer_loading",
        ),
        ([{**AGENTS, "mood": "good"}], "tools[0].mood"),
        ([LOOK | {"name": "agents__spawn"}, AGENTS], "tools[1].tools[0].name"),
        ([LOOK | {"tools": [LOOK]}], "tools[0].tools"),
    ],
)
def test_a_namespace_that_can_t_be_honoured_is_refused_with_its_place(
    tools: list[dict[str, Any]], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request_for(tools=tools)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("sent", "held"), [({}, False), ({"strict": None}, False), ({"strict": True}, True)]
)
def test_a_response_says_whether_a_tool_was_held_to_its_schema(
    sent: dict[str, Any], held: bool
) -> None:
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}, **sent}
    assert [one.is_strict for one in conversation_of(tools=[tool]).tools] == [held]
    response = new_response(body_for(tools=[tool]), "resp_1", 1, "in_progress")
    assert [one["strict"] for one in response["tools"]] == [held]
