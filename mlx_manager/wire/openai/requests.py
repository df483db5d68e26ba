"""From OpenAI's bodies to chat requests: the last place that knows it was OpenAI."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from mlx_manager.chat.request import (
    ChatRequest,
    Conversation,
    Message,
    Origin,
    Priority,
    RawPrompt,
    Role,
    Sampling,
    Selection,
    Tool,
    ToolCall,
    ToolChoice,
)
from mlx_manager.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.wire.begun import check_begun
from mlx_manager.wire.json_text import check_finite
from mlx_manager.wire.left_out import NAMES, remark
from mlx_manager.wire.openai.formats import answer_format
from mlx_manager.wire.openai.parameters import (
    check_template_arguments,
    check_unsupported,
)
from mlx_manager.wire.openai.schema import (
    MAX_CHOICES,
    AllowedToolChoice,
    ChatCompletionBody,
    ChatMessage,
    CompletionBody,
    ContentPart,
    GenerationBody,
    NamedToolChoice,
    ToolCallMessage,
    ToolDefinition,
)
from mlx_manager.wire.openai.thinking import Thinking, thinking_of

DEFAULT_COMPLETION_TOKENS = 16
# Of a function that says nothing of them: as OpenAI's reference has it, its list of parameters is empty.
NO_PARAMETERS: Mapping[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}


def chat_request(body: ChatCompletionBody, origin: Origin) -> ChatRequest:
    """Return what a chat completion asks for. Raises InvalidRequest and UnsupportedParameter."""
    _check(body)
    max_tokens = body.max_completion_tokens or body.max_tokens
    check_min_tokens(body, max_tokens)
    thinking = thinking_of(body, body.thinking_token_budget)
    request = ChatRequest(
        model=body.model,
        input=_conversation(body, thinking),
        origin=origin,
        sampling=replace(sampling(body, _top_logprobs(body)), thinking_tokens=thinking.tokens),
        max_tokens=max_tokens,
        stop=stop_strings(body),
        format=answer_format(body),
        stream=bool(body.stream),
        priority=priority(body.priority),
        choices=body.n or 1,
    )
    return check_begun(request, f"messages[{len(body.messages) - 1}]")


def completion_request(body: CompletionBody, origin: Origin) -> ChatRequest:
    """Return what a text completion asks for. Raises InvalidRequest and UnsupportedParameter."""
    _check(body)
    max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    check_min_tokens(body, max_tokens)
    selection = _selection(body)
    choices = (body.best_of if selection else body.n) or 1
    first, *others = _raw_prompts(body, choices)
    logprobs = 0 if selection and body.logprobs is None else body.logprobs
    return ChatRequest(
        model=body.model,
        input=first,
        origin=origin,
        sampling=sampling(body, logprobs),
        max_tokens=max_tokens,
        has_default_limit=body.max_tokens is None,
        stop=stop_strings(body),
        format=answer_format(body),
        stream=bool(body.stream),
        priority=priority(body.priority),
        choices=choices,
        selection=selection,
        more_prompts=tuple(others),
    )


def _selection(body: CompletionBody) -> Selection | None:
    """Return what is wanted of the choices; None when it is all of them."""
    wanted, made = body.n or 1, body.best_of or body.n or 1
    if made < wanted:
        raise InvalidRequest(
            f"'best_of' is {made}, and 'n' asks for {wanted} of them. Raise it, or leave it out.",
            param="best_of",
        )
    if made > wanted and body.stream:
        raise InvalidRequest(
            "Which answers are the best is known when all are complete: 'best_of' above 'n' can't be streamed.",
            param="best_of",
        )
    return Selection(wanted, body.logprobs is not None) if made > wanted else None


def _conversation(body: ChatCompletionBody, thinking: Thinking) -> Conversation:
    arguments = body.chat_template_kwargs or {}
    check_template_arguments(arguments)
    check_finite({"chat_template_kwargs": arguments})
    verbosity = {} if body.verbosity is None else {"verbosity": body.verbosity}
    return Conversation(
        messages=tuple(_message(message, index) for index, message in enumerate(body.messages)),
        # Few templates know levels; most have a switch, which `thinking` is.
        template_arguments={**thinking.variables, **verbosity, **arguments},
        tools=tuple(_tool(tool, index) for index, tool in enumerate(body.tools or ())),
        tool_choice=_tool_choice(body),
        # No chat is kept; a response of `/v1/responses` can be.
        unheld=(
            *thinking.unheld,
            *(["store"] if (body.model_extra or {}).get("store") is True else []),
        ),
        is_begun=_is_begun(body),
        thinking=thinking.is_on,
    )


def _is_begun(body: ChatCompletionBody) -> bool:
    """Whether the last message begins the answer, as vLLM's clients say it or Mistral's and DeepSeek's."""
    for index, message in enumerate(body.messages[:-1]):
        if message.prefix:
            raise InvalidRequest(
                "Only the last message can begin the answer. Leave 'prefix' out.",
                param=f"messages[{index}].prefix",
            )
    is_begun = bool(body.continue_final_message or body.messages[-1].prefix)
    if body.add_generation_prompt and is_begun:
        raise InvalidRequest(
            "'add_generation_prompt' begins a new message, and the last one is to be gone on with. Leave it out.",
            param="add_generation_prompt",
        )
    if body.add_generation_prompt is False and not is_begun:
        raise UnsupportedParameter(
            "Without 'add_generation_prompt' nobody would know whose message comes next. Leave it out, or set "
            "'continue_final_message' to true.",
            param="add_generation_prompt",
        )
    return is_begun


def _tool(tool: ToolDefinition, index: int) -> Tool:
    function = tool.function
    check_finite({f"tools[{index}].function.parameters": function.parameters})
    parameters = NO_PARAMETERS if function.parameters is None else function.parameters
    return Tool(function.name, function.description, parameters, bool(function.strict))


def _tool_choice(body: ChatCompletionBody) -> ToolChoice:
    choice, is_parallel = body.tool_choice or "auto", body.parallel_tool_calls is not False
    if isinstance(choice, AllowedToolChoice):
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        allowed = allowed_names(names, {tool.function.name for tool in body.tools or ()})
        return ToolChoice(choice.allowed_tools.mode, is_parallel=is_parallel, allowed=allowed)
    if not isinstance(choice, NamedToolChoice):
        if choice == "required" and not body.tools:
            raise InvalidRequest(
                "'tool_choice' is \"required\", and there are no 'tools'.", param="tool_choice"
            )
        return ToolChoice(choice, is_parallel=is_parallel)
    name = choice.function.name
    if all(tool.function.name != name for tool in body.tools or ()):
        raise InvalidRequest(
            f"'tool_choice' names {name!r}, which is not one of 'tools'.", param="tool_choice"
        )
    return ToolChoice("required", name, is_parallel=is_parallel)


def allowed_names(names: Iterable[str], known: AbstractSet[str]) -> tuple[str, ...]:
    """Return names of tools that may be called, each once. Raises InvalidRequest for one that no tool has."""
    found = tuple(dict.fromkeys(names))
    for name in found:
        if name not in known:
            raise InvalidRequest(
                f"'tool_choice' allows {name!r}, which is not one of 'tools'.", param="tool_choice"
            )
    return found


def _check(body: GenerationBody) -> None:
    check_unsupported(body.model_extra or {})
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "'stream_options' is only for streams. Set 'stream' to true or leave it out.",
            param="stream_options",
        )


def check_min_tokens(body: GenerationBody, max_tokens: int | None) -> None:
    """Raise InvalidRequest when an answer of `max_tokens` can't have the least that is asked for."""
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise InvalidRequest(
            f"'min_tokens' is {body.min_tokens}, and the answer ends after {max_tokens} tokens. Lower it.",
            param="min_tokens",
        )


def _top_logprobs(body: ChatCompletionBody) -> int | None:
    """Return how many are asked for beside the token's own; None when none are asked for at all."""
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest(
            "'top_logprobs' is only for answers with 'logprobs'. Set 'logprobs' to true or leave it out.",
            param="top_logprobs",
        )
    return None


def _raw_prompts(body: CompletionBody, choices: int) -> list[RawPrompt]:
    """Return the prompts, one at least; each is to have so many answers."""
    prompts = _prompts(body.prompt)
    if not prompts:
        raise InvalidRequest("'prompt' is empty. Send a text or token ids.", param="prompt")
    if len(prompts) * choices > MAX_CHOICES:
        raise InvalidRequest(
            f"{len(prompts)} prompts with {choices} answers each make {len(prompts) * choices}; a request may ask for "
            f"{MAX_CHOICES}. Send fewer prompts at once.",
            param="prompt",
        )
    is_single, is_echoed = len(prompts) == 1, bool(body.echo)
    return [
        RawPrompt(one, is_echoed, "prompt" if is_single else f"prompt[{index}]")
        for index, one in enumerate(prompts)
    ]


def _prompts(
    prompt: str | list[int] | list[str] | list[list[int]],
) -> Sequence[str | tuple[int, ...]]:
    """Return one text, one list of token ids, or each of a list of either."""
    if isinstance(prompt, str):
        return [prompt]
    if token_ids := tuple(one for one in prompt if isinstance(one, int)):
        return [token_ids]
    return [
        one if isinstance(one, str) else tuple(one) for one in prompt if not isinstance(one, int)
    ]


def sampling(body: GenerationBody, top_logprobs: int | None) -> Sampling:
    """Return how the tokens of an answer are chosen."""
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(body.top_k, 0),
        min_p=body.min_p,
        seed=body.seed,
        xtc_probability=body.xtc_probability,
        xtc_threshold=body.xtc_threshold,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias or {},
        min_tokens=body.min_tokens,
        ignore_end=bool(body.ignore_eos),
        top_logprobs=top_logprobs,
    )


def priority(asked: Priority | int | None) -> Priority | None:
    """Return a priority by its name. In vLLM's numbers 0 is the normal one, and what is lower goes first."""
    if not isinstance(asked, int):
        return asked
    return "normal" if asked == 0 else "high" if asked < 0 else "low"


def stop_strings(body: GenerationBody) -> tuple[str, ...]:
    """Return what ends an answer."""
    if body.stop is None:
        return ()
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)


def _message(message: ChatMessage, index: int) -> Message:
    place = f"messages[{index}]"
    check_unsupported(message.model_extra or {}, kind="messages[].", place=f"{place}.")
    # Templates know `system`; `developer` is OpenAI's newer word for the same thing.
    role: Role = "system" if message.role == "developer" else message.role
    if message.content is None and not message.tool_calls:
        raise InvalidRequest(
            f"{place} has no content. Only an assistant message with tool calls may leave it out.",
            param=f"{place}.content",
        )
    content, left_out = _text(message.content, place, is_result=message.role == "tool")
    return Message(
        role=role,
        content=content,
        name=message.name,
        tool_calls=tuple(
            _tool_call(call, place, at) for at, call in enumerate(message.tool_calls or ())
        ),
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning_content or message.reasoning or _thoughts(message),
        left_out=left_out,
        phase=message.phase,
    )


def _thoughts(message: ChatMessage) -> str | None:
    """Return what an assistant thought, from the pieces that some servers give it in; None when nothing can be read."""
    pieces = message.reasoning_details or message.thinking_blocks or []
    said = (piece.get(name) for piece in pieces for name in ("text", "thinking", "summary"))
    return "".join(text for text in said if isinstance(text, str)) or None


def _text(
    content: str | list[ContentPart] | None, place: str, *, is_result: bool
) -> tuple[str, int]:
    """The text of a content, and how many parts of a tool's result have only a remark in it."""
    if not isinstance(content, list):
        return content or "", 0
    pieces, left_out = list[str](), 0
    for position, part in enumerate(content):
        at = f"{place}.content[{position}]"
        if part.type == "text" and part.text is not None:
            check_unsupported(part.model_extra or {}, kind="messages[].content[].", place=f"{at}.")
            pieces.append(part.text)
        elif is_result and part.type in NAMES:
            # Nothing of it is read.
            pieces.append(remark(part.type))
            left_out += 1
        else:
            raise UnsupportedParameter(
                f"{at} is of type {part.type!r}. This version understands text only.", param=at
            )
    return "".join(pieces), left_out


def _tool_call(call: ToolCallMessage, place: str, index: int) -> ToolCall:
    kind, at = "messages[].tool_calls[].", f"{place}.tool_calls[{index}]."
    check_unsupported(call.model_extra or {}, kind=kind, place=at)
    check_unsupported(
        call.function.model_extra or {}, kind=f"{kind}function.", place=f"{at}function."
    )
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(
            f"{place} has a tool call whose arguments are not a JSON object.",
            param=f"{place}.tool_calls",
        )
    return ToolCall(call.id, call.function.name, arguments)
