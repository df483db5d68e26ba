"""From the Responses API's body to a chat request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from mlx_manager.chat.request import (
    AnswerFormat,
    ChatRequest,
    Conversation,
    Message,
    Origin,
    Tool,
    ToolChoice,
)
from mlx_manager.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.wire.json_text import check_writable
from mlx_manager.wire.left_out import hosted_beside_others, is_hosted, not_to_be_chosen
from mlx_manager.wire.openai.formats import the_only
from mlx_manager.wire.openai.requests import (
    NO_PARAMETERS,
    allowed_names,
    check_min_tokens,
    priority,
    sampling,
    stop_strings,
)
from mlx_manager.wire.openai.responses.items import ItemObject, messages_of
from mlx_manager.wire.openai.responses.namespaces import NAMESPACE, joined
from mlx_manager.wire.openai.responses.parameters import (
    LOGPROBS,
    check_included,
    check_inside,
    check_supported,
)
from mlx_manager.wire.openai.responses.schema import (
    AllowedToolsChoice,
    FunctionTool,
    ResponsesBody,
    RetrieveQuery,
    TextFormat,
    ToolChoiceObject,
)

FORMAT = "text.format"
# What the tables of parameters call a tool, and one that `tool_choice` allows.
TOOLS, ALLOWED = "tools[]", "tool_choice.tools[]"


def check_body(body: ResponsesBody) -> None:
    """Raise InvalidRequest or UnsupportedParameter for what can't be honoured, before anything is looked up."""
    check_supported(body)
    # A response repeats what was asked, and keeps it.
    check_writable(body.model_dump(exclude_unset=True))
    if not body.input and body.previous_response_id is None:
        raise InvalidRequest("'input' is empty. Send a text or items.", param="input")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "'stream_options' is only for streams. Set 'stream' to true or leave it out.",
            param="stream_options",
        )
    if body.background and not body.is_stored:
        raise InvalidRequest(
            "A response in the background has to be stored, to be asked for later. Leave out 'store'.",
            param="store",
        )
    check_min_tokens(body, body.max_output_tokens)


def check_query(query: RetrieveQuery) -> None:
    """Raise InvalidRequest or UnsupportedParameter for what a stored response can't be asked for with."""
    check_included(query.included)
    if query.starting_after is not None and not query.stream:
        raise InvalidRequest(
            "'starting_after' is only for streams. Set 'stream' to true or leave it out.",
            param="starting_after",
        )


def response_request(
    body: ResponsesBody, origin: Origin, items: Sequence[ItemObject]
) -> ChatRequest:
    """Return what a response asks for; `items` are those of earlier responses and its own input, in order.

    Raises InvalidRequest and UnsupportedParameter.
    """
    return ChatRequest(
        model=body.model,
        input=_conversation(body, items),
        origin=origin,
        sampling=replace(
            sampling(body, _top_logprobs(body)), thinking_tokens=body.thinking_token_budget
        ),
        max_tokens=body.max_output_tokens,
        stop=stop_strings(body),
        format=the_only(_formats(body), body.structured_outputs, FORMAT),
        stream=bool(body.stream),
        priority=priority(body.priority),
    )


def _conversation(body: ResponsesBody, items: Sequence[ItemObject]) -> Conversation:
    instructions = () if body.instructions is None else (Message("system", body.instructions),)
    effort = body.reasoning.effort if body.reasoning else None
    verbosity = verbosity_of(body)
    said = {"reasoning_effort": effort, "verbosity": verbosity}
    tools = body.tools or []
    absent = hosted_beside_others([tool.type for tool in tools])
    return Conversation(
        messages=(*instructions, *messages_of(items)),
        # Few templates know levels; most have a switch, which `thinking` is.
        template_arguments={name: value for name, value in said.items() if value is not None},
        tools=tuple(_functions(tools, absent)),
        tool_choice=_tool_choice(body),
        absent_tools=tuple(f"tools[{at}]" for at in sorted(absent)),
        unheld=tuple(_summaries(body)),
        thinking=None if effort is None else effort != "none",
    )


def verbosity_of(body: ResponsesBody) -> str | None:
    """Return how long an answer is to be, by either of the two places that can say so."""
    in_text = body.text.verbosity if body.text else None
    if None not in (in_text, body.verbosity) and in_text != body.verbosity:
        raise InvalidRequest(
            "'verbosity' contradicts 'text.verbosity'. Send one of them.", param="verbosity"
        )
    return in_text or body.verbosity


def _summaries(body: ResponsesBody) -> Iterator[str]:
    """Yield where a summary of the model's thoughts is asked for: there is nobody here who would write one."""
    asked = (
        body.reasoning.model_dump(include={"summary", "generate_summary"}) if body.reasoning else {}
    )
    for name, value in asked.items():
        if value not in (None, "none"):
            yield f"reasoning.{name}"


def _functions(tools: Sequence[FunctionTool], absent: AbstractSet[int]) -> Iterator[Tool]:
    """Yield the functions that are tools and those in namespaces. Raises InvalidRequest for a name that two have."""
    names = set[str]()
    for at, tool in enumerate(tools):
        if at in absent:
            continue
        for place, function in _grouped(tool, f"tools[{at}]"):
            if function.name in names and function.namespace is not None:
                raise InvalidRequest(
                    f"{place} is known to the model as {function.name!r}, and so is another tool. Rename one of them.",
                    param=f"{place}.name",
                )
            names.add(function.name)
            yield function


def _grouped(tool: FunctionTool, place: str) -> Iterator[tuple[str, Tool]]:
    if tool.type != NAMESPACE:
        yield place, _tool(tool, place)
        return
    check_inside(tool.model_extra or {}, TOOLS, place)
    if tool.name is None:
        raise InvalidRequest(f"{place}.name is missing.", param=f"{place}.name")
    about = tool.description
    for at, one in enumerate(tool.tools or ()):
        function = _tool(one, f"{place}.tools[{at}]")
        # What the group is about stands before its first function.
        description = "\n".join(filter(None, (about, function.description))) or None
        about = None
        yield (
            f"{place}.tools[{at}]",
            replace(
                function,
                name=joined(tool.name, function.name),
                description=description,
                namespace=tool.name,
            ),
        )


def _tool(tool: FunctionTool, place: str) -> Tool:
    if tool.type != "function":
        raise UnsupportedParameter(
            f"{place} is of type {tool.type!r}. This version knows tools of type 'function', which you run "
            "yourself, and 'namespace', which groups some. Leave this one out.",
            param=f"{place}.type",
        )
    extra = {"tools": tool.tools} if tool.tools is not None else {}
    check_inside({**extra, **(tool.model_extra or {})}, TOOLS, place)
    if tool.name is None:
        raise InvalidRequest(f"{place}.name is missing.", param=f"{place}.name")
    parameters = NO_PARAMETERS if tool.parameters is None else tool.parameters
    return Tool(tool.name, tool.description, parameters, bool(tool.strict))


def _tool_choice(body: ResponsesBody) -> ToolChoice:
    choice, is_parallel = body.tool_choice or "auto", body.parallel_tool_calls is not False
    if isinstance(choice, AllowedToolsChoice):
        return ToolChoice(choice.mode, is_parallel=is_parallel, allowed=_allowed(choice, body))
    if not isinstance(choice, ToolChoiceObject):
        if choice == "required" and not body.tools:
            raise InvalidRequest(
                "'tool_choice' is \"required\", and there are no 'tools'.", param="tool_choice"
            )
        return ToolChoice(choice, is_parallel=is_parallel)
    return ToolChoice("required", _named(choice, body), is_parallel=is_parallel)


def _named(choice: ToolChoiceObject, body: ResponsesBody) -> str | None:
    """Return the name of the one tool that must be called."""
    if is_hosted(choice.type):
        raise UnsupportedParameter(
            not_to_be_chosen(choice.type, '"auto"'), param="tool_choice.type"
        )
    if choice.type != "function":
        raise UnsupportedParameter(
            f"'tool_choice' is of type {choice.type!r}. This version knows 'function'.",
            param="tool_choice.type",
        )
    check_inside(choice.model_extra or {}, "tool_choice")
    named = [tool for tool in body.tools or () if tool.name == choice.name]
    if named and all(is_hosted(tool.type) for tool in named):
        raise InvalidRequest(not_to_be_chosen(named[0].type, '"auto"'), param="tool_choice")
    if not named:
        raise InvalidRequest(
            f"'tool_choice' names {choice.name!r}, which is not one of 'tools'.",
            param="tool_choice",
        )
    return choice.name


def _allowed(choice: AllowedToolsChoice, body: ResponsesBody) -> tuple[str, ...]:
    """Return the names of the tools that may be called: those that run at OpenAI are left out here as everywhere."""
    some = {at: tool for at, tool in enumerate(choice.tools) if not is_hosted(tool.type)}
    if not some:
        raise InvalidRequest(not_to_be_chosen(choice.tools[0].type, '"auto"'), param="tool_choice")
    for at, tool in some.items():
        if tool.type != "function":
            raise UnsupportedParameter(
                f"'tool_choice' allows a tool of type {tool.type!r}. This version knows 'function'.",
                param="tool_choice.tools",
            )
        check_inside(tool.model_extra or {}, ALLOWED, f"tool_choice.tools[{at}]")
    known = {tool.name or "" for tool in body.tools or () if tool.type == "function"}
    return allowed_names((tool.name or "" for tool in some.values()), known)


def _top_logprobs(body: ResponsesBody) -> int | None:
    """Return how many are asked for beside the token's own; None when none are asked for at all."""
    if LOGPROBS in (body.include or ()):
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest(
            f"'top_logprobs' is only for answers with log-probabilities. Add {LOGPROBS!r} to 'include', or leave it "
            "out.",
            param="top_logprobs",
        )
    return None


def _formats(body: ResponsesBody) -> list[AnswerFormat]:
    asked = body.text.format if body.text else None
    if asked is None or asked.type == "text":
        return []
    if asked.type == "json_object":
        return [AnswerFormat("json_schema", {"type": "object"}, FORMAT)]
    return [AnswerFormat("json_schema", _schema(asked), f"{FORMAT}.schema")]


def _schema(asked: TextFormat) -> dict[str, Any]:
    for name, value in (("name", asked.name), ("schema", asked.json_schema)):
        if value is None:
            raise InvalidRequest(f"{FORMAT}.{name} is missing.", param=f"{FORMAT}.{name}")
    return asked.json_schema or {}
