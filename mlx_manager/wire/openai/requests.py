"""From OpenAI's bodies to chat requests: the last place that knows it was OpenAI."""

from __future__ import annotations

import json

from mlx_manager.chat.request import (
    ChatRequest,
    Conversation,
    Message,
    Origin,
    RawPrompt,
    Role,
    Sampling,
    ToolCall,
)
from mlx_manager.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.wire.openai.parameters import (
    check_template_arguments,
    check_unsupported,
    check_unsupported_in_message,
)
from mlx_manager.wire.openai.schema import (
    ChatCompletionBody,
    ChatMessage,
    CompletionBody,
    ContentPart,
    GenerationBody,
    ToolCallMessage,
)

DEFAULT_COMPLETION_TOKENS = 16


def chat_request(body: ChatCompletionBody, origin: Origin) -> ChatRequest:
    """Return what a chat completion asks for. Raises InvalidRequest and UnsupportedParameter."""
    _check(body)
    template_arguments = body.chat_template_kwargs or {}
    check_template_arguments(template_arguments)
    messages = tuple(_message(message, index) for index, message in enumerate(body.messages))
    return ChatRequest(
        model=body.model,
        input=Conversation(messages, template_arguments),
        origin=origin,
        sampling=_sampling(body),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop=_stop(body),
        stream=bool(body.stream),
    )


def completion_request(body: CompletionBody, origin: Origin) -> ChatRequest:
    """Return what a text completion asks for. Raises InvalidRequest and UnsupportedParameter."""
    _check(body)
    return ChatRequest(
        model=body.model,
        input=_raw_prompt(body.prompt),
        origin=origin,
        sampling=_sampling(body),
        max_tokens=body.max_tokens or DEFAULT_COMPLETION_TOKENS,
        stop=_stop(body),
        stream=bool(body.stream),
    )


def _check(body: GenerationBody) -> None:
    check_unsupported(body.model_extra or {})
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "'stream_options' is only for streams. Set 'stream' to true or leave it out.",
            param="stream_options",
        )


def _raw_prompt(prompt: str | list[int] | list[str] | list[list[int]]) -> RawPrompt:
    if isinstance(prompt, str):
        return RawPrompt(prompt)
    match prompt:
        case [str() as text]:
            return RawPrompt(text)
        case [list() as token_ids]:
            return RawPrompt(tuple(token_ids))
        case [int(), *_]:
            return RawPrompt(tuple(token_id for token_id in prompt if isinstance(token_id, int)))
        case []:
            raise InvalidRequest("'prompt' is empty. Send a text or token ids.", param="prompt")
    raise UnsupportedParameter(
        "This version answers one prompt per request. Send one request for each.", param="prompt"
    )


def _sampling(body: GenerationBody) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(body.top_k, 0),
        min_p=body.min_p,
        seed=body.seed,
    )


def _stop(body: GenerationBody) -> tuple[str, ...]:
    if body.stop is None:
        return ()
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)


def _message(message: ChatMessage, index: int) -> Message:
    check_unsupported_in_message(message.model_extra or {}, index)
    # Templates know `system`; `developer` is OpenAI's newer word for the same thing.
    role: Role = "system" if message.role == "developer" else message.role
    if message.content is None and not message.tool_calls:
        raise InvalidRequest(
            f"messages[{index}] has no content. Only an assistant message with tool calls may leave it out.",
            param=f"messages[{index}].content",
        )
    return Message(
        role=role,
        content=_text(message.content, index),
        name=message.name,
        tool_calls=tuple(_tool_call(call, index) for call in message.tool_calls or ()),
        tool_call_id=message.tool_call_id,
    )


def _text(content: str | list[ContentPart] | None, index: int) -> str:
    if not isinstance(content, list):
        return content or ""
    for position, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise UnsupportedParameter(
                f"messages[{index}].content[{position}] is of type {part.type!r}. This version understands "
                "text only.",
                param=f"messages[{index}].content[{position}]",
            )
    return "".join(part.text or "" for part in content)


def _tool_call(call: ToolCallMessage, index: int) -> ToolCall:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(
            f"messages[{index}] has a tool call whose arguments are not a JSON object.",
            param=f"messages[{index}].tool_calls",
        )
    return ToolCall(call.id, call.function.name, arguments)
