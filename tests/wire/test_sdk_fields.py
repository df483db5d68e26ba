"""Every field that the installed SDKs can send is honoured, accepted, or refused as what it is: none is unknown here.

The lists come from the SDKs' own types. An update of an SDK that adds a field fails here until somebody decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from anthropic.types import (
    ContentBlockSourceParam,
    DocumentBlockParam,
    MessageCountTokensParams,
    OutputConfigParam,
    PlainTextSourceParam,
    RedactedThinkingBlockParam,
    SearchResultBlockParam,
    TextBlockParam,
    ThinkingBlockParam,
    ThinkingConfigAdaptiveParam,
    ThinkingConfigBetweenToolsParam,
    ThinkingConfigDisabledParam,
    ThinkingConfigEnabledParam,
    ToolChoiceAnyParam,
    ToolChoiceAutoParam,
    ToolChoiceNoneParam,
    ToolChoiceToolParam,
    ToolParam,
    ToolResultBlockParam,
    ToolUseBlockParam,
)
from anthropic.types.assistant_message_param import AssistantMessageParam
from anthropic.types.beta import BetaOutputConfigParam, BetaToolParam
from anthropic.types.beta import message_count_tokens_params as beta_count
from anthropic.types.beta import message_create_params as beta_create
from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)
from anthropic.types.system_message_param import SystemMessageParam
from anthropic.types.user_message_param import UserMessageParam
from openai.types import EmbeddingCreateParams, completion_create_params
from openai.types.chat import (
    ChatCompletionAllowedToolChoiceParam,
    ChatCompletionAllowedToolsParam,
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import (
    chat_completion_message_function_tool_call_param as chat_call_param,
)
from openai.types.chat import (
    chat_completion_named_tool_choice_param as chat_choice_param,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from openai.types.responses import (
    EasyInputMessageParam,
    FunctionToolParam,
    InputTokenCountParams,
    NamespaceToolParam,
    ResponseFormatTextJSONSchemaConfigParam,
    ResponseFunctionToolCallParam,
    ResponseInputTextContentParam,
    ResponseInputTextParam,
    ResponseOutputMessageParam,
    ResponseOutputTextParam,
    ResponseReasoningItemParam,
    ResponseTextConfigParam,
    ToolChoiceAllowedParam,
    ToolChoiceFunctionParam,
    namespace_tool_param,
    response_create_params,
    response_input_item_param,
    response_reasoning_item_param,
    response_retrieve_params,
)
from openai.types.responses.input_item_list_params import InputItemListParams
from openai.types.shared_params import (
    FunctionDefinition,
    Reasoning,
    ResponseFormatJSONObject,
    ResponseFormatJSONSchema,
    ResponseFormatText,
    response_format_json_schema,
)
from pydantic import BaseModel, ValidationError

from mlx_manager.chat.request import Origin
from mlx_manager.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.wire.anthropic.requests import count_request, message_request
from mlx_manager.wire.anthropic.schema import (
    CountTokensBody,
    MessagesBody,
    ThinkingBody,
    ToolChoiceBody,
)
from mlx_manager.wire.openai.embeddings import EmbeddingsBody, embedding_request
from mlx_manager.wire.openai.requests import chat_request, completion_request
from mlx_manager.wire.openai.responses.items import input_items
from mlx_manager.wire.openai.responses.requests import check_body, response_request
from mlx_manager.wire.openai.responses.schema import (
    ItemsQuery,
    ResponsesBody,
    RetrieveQuery,
)
from mlx_manager.wire.openai.schema import (
    ChatCompletionBody,
    CompletionBody,
    StreamOptions,
    ToolDefinition,
)
from mlx_manager.wire.signature import Signer

SIGNER = Signer(b"a key of this process")
# A value that nobody sends: whatever reads it refuses it, and whatever doesn't, doesn't look.
STRANGE = {"strange": ["value"]}
HI: Any = [{"role": "user", "content": "Hi"}]
TOOL: Any = {"name": "look", "input_schema": {"type": "object"}}
FUNCTION: Any = {"name": "look", "parameters": {"type": "object"}}
# What the SDK sends as a header, or not at all.
NOT_IN_A_BODY = {"betas"}


def ask_chat(body: dict[str, Any]) -> object:
    given = ChatCompletionBody.model_validate({"model": "m", "messages": HI} | body)
    return chat_request(given, Origin("r", "/v1/chat/completions"))


def ask_completion(body: dict[str, Any]) -> object:
    given = CompletionBody.model_validate({"model": "m", "prompt": "Hi"} | body)
    return completion_request(given, Origin("r", "/v1/completions"))


def ask_embeddings(body: dict[str, Any]) -> object:
    given = EmbeddingsBody.model_validate({"model": "m", "input": "Hi"} | body)
    return embedding_request(given, Origin("r", "/v1/embeddings"))


def ask_response(body: dict[str, Any]) -> object:
    given, origin = (
        ResponsesBody.model_validate({"model": "m", "input": "Hi"} | body),
        Origin("r", "/v1/responses"),
    )
    check_body(given)
    return response_request(given, origin, input_items(given.input, "r", SIGNER))


def ask_message(body: dict[str, Any]) -> object:
    asked = {"model": "m", "max_tokens": 5, "messages": HI} | body
    return message_request(MessagesBody.model_validate(asked), Origin("r", "/v1/messages"), SIGNER)


def ask_count(body: dict[str, Any]) -> object:
    given = CountTokensBody.model_validate({"model": "m", "messages": HI} | body)
    return count_request(given, Origin("r", "/v1/messages/count_tokens"), SIGNER)


Ask = Callable[[dict[str, Any]], object]


def fields_of(*kinds: Any) -> set[str]:
    """Every field of the SDK's typed dictionaries."""
    found = {name for kind in kinds for name in kind.__annotations__}
    for kind in kinds:
        found |= kind.__required_keys__ | kind.__optional_keys__
    assert len(found) > 0
    return found - NOT_IN_A_BODY


def is_known(ask: Ask, body: dict[str, Any]) -> bool:
    """Whether a body is understood: answered, or refused for a value, and not because nobody has heard of a field."""
    try:
        ask(body)
    except UnsupportedParameter as refusal:
        is_of_the_value = str(refusal.param).endswith(".strange")
        return is_of_the_value or not refusal.message.startswith("Unknown parameter")
    except ValidationError as error:
        unheard = [one["loc"] for one in error.errors() if one["type"] == "extra_forbidden"]
        return all(place[-1] in STRANGE for place in unheard)
    except InvalidRequest:
        return True
    return True


def unknown(ask: Ask, names: Iterable[str], wrap: Callable[[str], dict[str, Any]]) -> list[str]:
    return sorted(name for name in names if not is_known(ask, wrap(name)))


BODIES: list[tuple[Ask, set[str]]] = [
    (
        ask_chat,
        fields_of(
            chat_create_params.CompletionCreateParamsNonStreaming,
            chat_create_params.CompletionCreateParamsStreaming,
        ),
    ),
    (
        ask_completion,
        fields_of(
            completion_create_params.CompletionCreateParamsNonStreaming,
            completion_create_params.CompletionCreateParamsStreaming,
        ),
    ),
    (ask_embeddings, fields_of(EmbeddingCreateParams)),
    (
        ask_response,
        fields_of(
            response_create_params.ResponseCreateParamsNonStreaming,
            response_create_params.ResponseCreateParamsStreaming,
        ),
    ),
    (ask_response, fields_of(InputTokenCountParams)),
    (ask_message, fields_of(MessageCreateParamsNonStreaming, MessageCreateParamsStreaming)),
    (
        ask_message,
        fields_of(
            beta_create.MessageCreateParamsNonStreaming, beta_create.MessageCreateParamsStreaming
        ),
    ),
    (ask_count, fields_of(MessageCountTokensParams)),
    (ask_count, fields_of(beta_count.MessageCountTokensParams)),
]


@pytest.mark.parametrize(("ask", "names"), BODIES, ids=lambda one: getattr(one, "__name__", ""))
def test_no_field_of_a_body_is_unknown(ask: Ask, names: set[str]) -> None:
    assert len(names) >= 5
    assert unknown(ask, names, lambda name: {name: STRANGE}) == []


def test_the_check_itself_tells_unknown_fields_from_others() -> None:
    for ask, _ in BODIES:
        assert not is_known(ask, {"unheard_of": STRANGE})


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"} | fields]}


def block(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"} | fields]}]}


def said(given: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [given]}]}


def assistant(given: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*HI, {"role": "assistant", "content": [given]}, *HI]}


def called(**fields: Any) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}} | fields
    return {"messages": [*HI, {"role": "assistant", "tool_calls": [call]}]}


def chosen(choice: dict[str, Any]) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": choice}


LOOK: Any = {"type": "function", "function": {"name": "look"}}
SOME: Any = {"mode": "auto", "tools": [LOOK]}
DOCUMENT: Any = {"type": "document", "source": {"type": "text", "data": "Hi"}}
FOUND: Any = {"type": "search_result", "source": "a", "title": "b", "content": []}
USE: Any = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
RESULT: Any = {"type": "tool_result", "tool_use_id": "t"}
CALL: Any = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
OUTPUT: Any = {"type": "function_call_output", "call_id": "c", "output": "a cat"}
SAID: Any = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
THOUGHT: Any = {"type": "reasoning", "id": "rs_1", "summary": []}
FLAT: Any = {"type": "function", **FUNCTION}


def item(given: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "Hi"}, given]}


def part(kind: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"type": kind, "text": "Hi", **fields}]


PARTS: list[tuple[str, Ask, set[str], Callable[[str], dict[str, Any]]]] = [
    (
        "messages of a chat",
        ask_chat,
        fields_of(
            ChatCompletionAssistantMessageParam,
            ChatCompletionDeveloperMessageParam,
            ChatCompletionSystemMessageParam,
            ChatCompletionToolMessageParam,
            ChatCompletionUserMessageParam,
        ),
        lambda name: message(**{name: STRANGE}),
    ),
    (
        "text parts of a chat",
        ask_chat,
        fields_of(ChatCompletionContentPartTextParam),
        lambda name: block(**{name: STRANGE}),
    ),
    (
        "tool calls of a chat",
        ask_chat,
        fields_of(ChatCompletionMessageFunctionToolCallParam),
        lambda name: called(**{name: STRANGE}),
    ),
    (
        "functions that were called in a chat",
        ask_chat,
        fields_of(chat_call_param.Function),
        lambda name: called(function={"name": "look", "arguments": "{}", name: STRANGE}),
    ),
    (
        "tool_choice of a chat",
        ask_chat,
        fields_of(ChatCompletionNamedToolChoiceParam),
        lambda name: chosen(LOOK | {name: STRANGE}),
    ),
    (
        "function of a chat's tool_choice",
        ask_chat,
        fields_of(chat_choice_param.Function),
        lambda name: chosen(LOOK | {"function": {"name": "look", name: STRANGE}}),
    ),
    (
        "tool_choice of a chat that allows some",
        ask_chat,
        fields_of(ChatCompletionAllowedToolChoiceParam),
        lambda name: chosen({"type": "allowed_tools", "allowed_tools": SOME, name: STRANGE}),
    ),
    (
        "what a chat's tool_choice allows",
        ask_chat,
        fields_of(ChatCompletionAllowedToolsParam),
        lambda name: chosen({"type": "allowed_tools", "allowed_tools": SOME | {name: STRANGE}}),
    ),
    (
        "a tool that a chat's tool_choice allows",
        ask_chat,
        fields_of(ChatCompletionFunctionToolParam),
        lambda name: chosen(
            {"type": "allowed_tools", "allowed_tools": SOME | {"tools": [LOOK | {name: STRANGE}]}}
        ),
    ),
    (
        "its function",
        ask_chat,
        fields_of(FunctionDefinition),
        lambda name: chosen(
            {
                "type": "allowed_tools",
                "allowed_tools": SOME
                | {"tools": [LOOK | {"function": {"name": "look", name: STRANGE}}]},
            }
        ),
    ),
    (
        "response_format text",
        ask_chat,
        fields_of(ResponseFormatText),
        lambda name: {"response_format": {"type": "text", name: STRANGE}},
    ),
    (
        "response_format json_object",
        ask_chat,
        fields_of(ResponseFormatJSONObject),
        lambda name: {"response_format": {"type": "json_object", name: STRANGE}},
    ),
    (
        "response_format json_schema",
        ask_chat,
        fields_of(ResponseFormatJSONSchema),
        lambda name: {
            "response_format": {"type": "json_schema", "json_schema": {"name": "n"}, name: STRANGE}
        },
    ),
    (
        "schema of a response_format",
        ask_chat,
        fields_of(response_format_json_schema.JSONSchema),
        lambda name: {
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", name: STRANGE}}
        },
    ),
    (
        "stream options of a chat",
        ask_chat,
        fields_of(ChatCompletionStreamOptionsParam),
        lambda name: {"stream": True, "stream_options": {name: True}},
    ),
    (
        "tools of a chat",
        ask_chat,
        fields_of(ChatCompletionFunctionToolParam),
        lambda name: {"tools": [{"type": "function", "function": FUNCTION} | {name: STRANGE}]},
    ),
    (
        "functions of a chat",
        ask_chat,
        fields_of(FunctionDefinition),
        lambda name: {"tools": [{"type": "function", "function": FUNCTION | {name: STRANGE}}]},
    ),
    (
        "tools of a response",
        ask_response,
        fields_of(FunctionToolParam),
        lambda name: {"tools": [FLAT | {name: STRANGE}]},
    ),
    (
        "tools of a response that are groups",
        ask_response,
        fields_of(NamespaceToolParam),
        lambda name: {
            "tools": [{"type": "namespace", "name": "n", "tools": [FLAT], name: STRANGE}]
        },
    ),
    (
        "tools in such a group",
        ask_response,
        fields_of(namespace_tool_param.ToolFunction),
        lambda name: {
            "tools": [{"type": "namespace", "name": "n", "tools": [FLAT | {name: STRANGE}]}]
        },
    ),
    (
        "tool_choice of a response",
        ask_response,
        fields_of(ToolChoiceFunctionParam),
        lambda name: {
            "tools": [FLAT],
            "tool_choice": {"type": "function", "name": "look", name: STRANGE},
        },
    ),
    (
        "tool_choice of a response that allows some",
        ask_response,
        fields_of(ToolChoiceAllowedParam),
        lambda name: {
            "tools": [FLAT],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "look"}],
                name: STRANGE,
            },
        },
    ),
    (
        "a tool that a response's tool_choice allows",
        ask_response,
        fields_of(FunctionToolParam),
        lambda name: {
            "tools": [FLAT],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "look", name: STRANGE}],
            },
        },
    ),
    (
        "messages of a response",
        ask_response,
        fields_of(EasyInputMessageParam, response_input_item_param.Message),
        lambda name: item({"role": "user", "content": "Hi", name: STRANGE}),
    ),
    (
        "messages of a response's output",
        ask_response,
        fields_of(ResponseOutputMessageParam),
        lambda name: item(SAID | {"content": part("output_text"), name: STRANGE}),
    ),
    (
        "calls of a response",
        ask_response,
        fields_of(ResponseFunctionToolCallParam),
        lambda name: item(CALL | {name: STRANGE}),
    ),
    (
        "their results",
        ask_response,
        fields_of(response_input_item_param.FunctionCallOutput),
        lambda name: item(OUTPUT | {name: STRANGE}),
    ),
    (
        "reasoning that a response goes on from",
        ask_response,
        fields_of(ResponseReasoningItemParam),
        lambda name: item(THOUGHT | {name: STRANGE}),
    ),
    (
        "references of a response",
        ask_response,
        fields_of(response_input_item_param.ItemReference),
        lambda name: item({"type": "item_reference", "id": "msg_1", name: STRANGE}),
    ),
    (
        "text of a response's input",
        ask_response,
        fields_of(ResponseInputTextParam),
        lambda name: item({"role": "user", "content": part("input_text", **{name: STRANGE})}),
    ),
    (
        "text of a response's output",
        ask_response,
        fields_of(ResponseOutputTextParam),
        lambda name: item(SAID | {"content": part("output_text", **{name: STRANGE})}),
    ),
    (
        "text of results",
        ask_response,
        fields_of(ResponseInputTextContentParam),
        lambda name: item(OUTPUT | {"output": part("input_text", **{name: STRANGE})}),
    ),
    (
        "summaries of reasoning",
        ask_response,
        fields_of(response_reasoning_item_param.Summary),
        lambda name: item(THOUGHT | {"summary": part("summary_text", **{name: STRANGE})}),
    ),
    (
        "text of reasoning",
        ask_response,
        fields_of(response_reasoning_item_param.Content),
        lambda name: item(THOUGHT | {"content": part("reasoning_text", **{name: STRANGE})}),
    ),
    (
        "format of a response",
        ask_response,
        fields_of(ResponseFormatTextJSONSchemaConfigParam),
        lambda name: {
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, name: STRANGE}}
        },
    ),
    (
        "reasoning of a response",
        ask_response,
        fields_of(Reasoning),
        lambda name: {"reasoning": {name: STRANGE}},
    ),
    (
        "text of a response",
        ask_response,
        fields_of(ResponseTextConfigParam),
        lambda name: {"text": {name: STRANGE}},
    ),
    (
        "tools of a message",
        ask_message,
        fields_of(ToolParam, BetaToolParam),
        lambda name: {"tools": [TOOL | {name: STRANGE}]},
    ),
    (
        "output_config of a message",
        ask_message,
        fields_of(OutputConfigParam, BetaOutputConfigParam),
        lambda name: {"output_config": {name: STRANGE}},
    ),
    (
        "thinking of a message",
        ask_message,
        fields_of(
            ThinkingConfigAdaptiveParam,
            ThinkingConfigBetweenToolsParam,
            ThinkingConfigDisabledParam,
            ThinkingConfigEnabledParam,
        ),
        lambda name: {"thinking": {"type": "adaptive", name: STRANGE}},
    ),
    (
        "tool_choice of a message",
        ask_message,
        fields_of(
            ToolChoiceAnyParam, ToolChoiceAutoParam, ToolChoiceNoneParam, ToolChoiceToolParam
        ),
        lambda name: {"tool_choice": {"type": "auto", name: STRANGE}},
    ),
    (
        "turns",
        ask_message,
        fields_of(UserMessageParam, AssistantMessageParam, SystemMessageParam),
        lambda name: message(**{name: STRANGE}),
    ),
    (
        "text blocks",
        ask_message,
        fields_of(TextBlockParam),
        lambda name: block(**{name: STRANGE}),
    ),
    (
        "documents",
        ask_message,
        fields_of(DocumentBlockParam),
        lambda name: said(DOCUMENT | {name: STRANGE}),
    ),
    (
        "sources of documents",
        ask_message,
        fields_of(PlainTextSourceParam),
        lambda name: said(DOCUMENT | {"source": DOCUMENT["source"] | {name: STRANGE}}),
    ),
    (
        "blocks in a document",
        ask_message,
        fields_of(ContentBlockSourceParam),
        lambda name: said(
            {"type": "document", "source": {"type": "content", "content": "a", name: STRANGE}}
        ),
    ),
    (
        "results of searches",
        ask_message,
        fields_of(SearchResultBlockParam),
        lambda name: said(FOUND | {name: STRANGE}),
    ),
    (
        "thinking blocks",
        ask_message,
        fields_of(ThinkingBlockParam),
        lambda name: assistant({"type": "thinking", "thinking": "Hm.", name: STRANGE}),
    ),
    (
        "redacted thinking blocks",
        ask_message,
        fields_of(RedactedThinkingBlockParam),
        lambda name: assistant({"type": "redacted_thinking", "data": "x", name: STRANGE}),
    ),
    (
        "blocks of tool use",
        ask_message,
        fields_of(ToolUseBlockParam),
        lambda name: assistant(USE | {name: STRANGE}),
    ),
    (
        "results of tools",
        ask_message,
        fields_of(ToolResultBlockParam),
        lambda name: {"messages": [*HI, {"role": "user", "content": [RESULT | {name: STRANGE}]}]},
    ),
]


@pytest.mark.parametrize(
    ("ask", "names", "wrap"), [one[1:] for one in PARTS], ids=[one[0] for one in PARTS]
)
def test_no_field_of_what_is_in_a_body_is_unknown(
    ask: Ask, names: set[str], wrap: Callable[[str], dict[str, Any]]
) -> None:
    assert unknown(ask, names, wrap) == []


@pytest.mark.parametrize(
    ("ask", "wrap"), [(one[1], one[3]) for one in PARTS], ids=[one[0] for one in PARTS]
)
def test_a_field_that_nobody_has_heard_of_is_refused_wherever_it_stands(
    ask: Ask, wrap: Callable[[str], dict[str, Any]]
) -> None:
    assert not is_known(ask, wrap("unheard_of"))


def test_how_a_stored_response_is_asked_for_is_all_read() -> None:
    sent = fields_of(
        response_retrieve_params.ResponseRetrieveParamsNonStreaming,
        response_retrieve_params.ResponseRetrieveParamsStreaming,
    )
    assert sent <= set(RetrieveQuery.model_fields)
    assert fields_of(InputItemListParams) <= set(ItemsQuery.model_fields)


def values_of(kind: type[BaseModel], field: str) -> set[str]:
    schema = kind.model_json_schema()["properties"][field]
    return set(schema.get("enum", [schema.get("const")]))


def test_every_mode_of_thinking_and_every_choice_of_tools_is_known() -> None:
    for kind in (
        ThinkingConfigAdaptiveParam,
        ThinkingConfigBetweenToolsParam,
        ThinkingConfigDisabledParam,
        ThinkingConfigEnabledParam,
    ):
        mode = str(kind.__annotations__["type"])
        assert any(
            f'"{value}"' in mode or f"'{value}'" in mode
            for value in values_of(ThinkingBody, "type")
        ), mode
    for choice in (
        ToolChoiceAnyParam,
        ToolChoiceAutoParam,
        ToolChoiceNoneParam,
        ToolChoiceToolParam,
    ):
        mode = str(choice.__annotations__["type"])
        assert any(
            f'"{value}"' in mode or f"'{value}'" in mode
            for value in values_of(ToolChoiceBody, "type")
        ), mode


def test_bodies_of_the_generation_before_are_understood() -> None:
    """What today's SDKs have no argument for any more, and older ones and other clients send."""
    older: list[tuple[Ask, dict[str, Any]]] = [
        (ask_message, {"temperature": 0.5, "top_p": 0.9, "top_k": 5}),
        (ask_message, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        (ask_message, {"output_format": {"type": "json_schema", "schema": {"type": "object"}}}),
        (ask_chat, {"max_tokens": 5, "function_call": "none", "functions": []}),
        (ask_chat, {"user": "me", "prompt_cache_retention": "24h"}),
        (ask_response, {"user": "me", "reasoning": {"generate_summary": "auto"}}),
    ]
    for ask, body in older:
        ask(body)


def test_bodies_of_today_are_understood() -> None:
    today: list[tuple[Ask, dict[str, Any]]] = [
        (
            ask_message,
            {"output_config": {"effort": "high"}, "cache_control": {"type": "ephemeral"}},
        ),
        (ask_message, {"thinking": {"type": "adaptive", "display": "omitted"}, "speed": "fast"}),
        (ask_message, {"thinking": {"type": "between_tools"}}),
        (ask_message, {"diagnostics": {"previous_message_id": "msg_1"}}),
        (ask_message, {"fallback_credit_token": "x", "billing_policy": {}}),
        (ask_chat, {"prompt_cache_options": {"mode": "explicit"}, "verbosity": "medium"}),
        (ask_chat, {"moderation": {"model": "omni-moderation-latest"}}),
        (ask_response, {"background_options": {"completion_window": "soonest"}}),
        (ask_response, {"prompt_cache_options": {"ttl": "12h", "prewarm": False}}),
        (ask_response, {"context_management": [], "text": {"verbosity": "medium"}}),
    ]
    for ask, body in today:
        ask(body)


def test_what_would_ask_for_something_else_than_an_answer_is_refused() -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        ask_response({"prompt_cache_options": {"prewarm": True}})
    assert refusal.value.param == "prompt_cache_options.prewarm"


def test_the_definitions_of_tools_have_all_fields_of_the_sdk() -> None:
    assert fields_of(ChatCompletionFunctionToolParam) <= set(ToolDefinition.model_fields)
    assert fields_of(ChatCompletionStreamOptionsParam) <= set(StreamOptions.model_fields)
