"""`POST /v1/tokenize` and `POST /v1/detokenize`, in the words of vLLM's and SGLang's: OpenAI's API has neither."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mlx_manager.chat.request import Conversation, Origin
from mlx_manager.chat.tokens import DetokenizeRequest, TokenizeRequest, Tokens
from mlx_manager.errors import InvalidRequest
from mlx_manager.wire.openai.parameters import HARMLESS, check_unsupported
from mlx_manager.wire.openai.requests import chat_request
from mlx_manager.wire.openai.schema import (
    MAX_MODEL_ID,
    MAX_TOOLS,
    BegunFields,
    ChatCompletionBody,
    ChatMessage,
    ChatToolChoice,
    TokenId,
    ToolDefinition,
    Verbosity,
)
from mlx_manager.wire.openai.thinking import ThinkingFields

ModelId = Annotated[str, Field(min_length=1, max_length=MAX_MODEL_ID)]


class TokenizeBody(BegunFields, ThinkingFields):
    """Body of `POST /v1/tokenize`: a text, or what a chat completion is asked for with."""

    model_config = ConfigDict(extra="allow")

    model: ModelId = Field(description="Id of a model, also of one that makes embeddings")
    prompt: str | None = Field(None, description="A text")
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = Field(
        None,
        description="Instead of a text: a conversation, through the model's template as a chat completion of the same "
        "body has it",
    )
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = (
        Field(None, description="Tools for `messages`")
    )
    tool_choice: ChatToolChoice | None = Field(
        None, description="For `messages`; `none` leaves the tools out"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="More variables of the template, for `messages`"
    )
    verbosity: Verbosity | None = Field(None, description="How long an answer is to be")
    add_special_tokens: bool | None = Field(
        None,
        description="Whether a text gets the tokens that the model's tokenizer puts around one (`true` unless it is "
        "given, as in a text completion)",
    )
    return_token_strs: bool | None = Field(
        None, description="Whether the vocabulary's entries come as `token_strs` beside the ids"
    )


class DetokenizeBody(BaseModel):
    """Body of `POST /v1/detokenize`."""

    model_config = ConfigDict(extra="forbid")

    model: ModelId = Field(description="Id of a model, also of one that makes embeddings")
    tokens: Annotated[list[TokenId], Field(fail_fast=True)] = Field(description="Token ids")
    skip_special_tokens: bool | None = Field(
        None, description="Whether special tokens are left out of the text (`false`)"
    )


# A prompt has as many tokens whatever is to come after it: the body of a chat completion may be sent as it is.
HARMLESS_TO_A_PROMPT = HARMLESS | (
    ChatCompletionBody.model_fields.keys() - TokenizeBody.model_fields.keys()
)
_SHARED = (*ThinkingFields.model_fields, *BegunFields.model_fields)
_OF_MESSAGES = ("tools", "tool_choice", "chat_template_kwargs", "verbosity", *_SHARED)


def tokenize_request(body: TokenizeBody, origin: Origin) -> TokenizeRequest:
    """Return what is to be encoded. Raises InvalidRequest and UnsupportedParameter."""
    check_unsupported(body.model_extra or {}, HARMLESS_TO_A_PROMPT)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("Send either a 'prompt' or 'messages'.", param="prompt")
    if body.messages is not None:
        return TokenizeRequest(body.model, _conversation(body, body.messages, origin))
    for name in _OF_MESSAGES:
        if getattr(body, name) is not None:
            raise InvalidRequest(
                f"{name!r} is only for 'messages'. Leave it out, or send those instead of 'prompt'.",
                param=name,
            )
    return TokenizeRequest(body.model, body.prompt or "", body.add_special_tokens is not False)


def _conversation(body: TokenizeBody, messages: list[ChatMessage], origin: Origin) -> Conversation:
    if body.add_special_tokens:
        raise InvalidRequest(
            "The model's template writes the special tokens of 'messages' itself. Leave out 'add_special_tokens'.",
            param="add_special_tokens",
        )
    chat = ChatCompletionBody(
        model=body.model,
        messages=messages,
        tools=body.tools,
        tool_choice=body.tool_choice,
        chat_template_kwargs=body.chat_template_kwargs,
        verbosity=body.verbosity,
        **{name: getattr(body, name) for name in _SHARED},
    )
    conversation = chat_request(chat, origin).input
    assert isinstance(conversation, Conversation), "that is what messages are"
    return conversation


def detokenize_request(body: DetokenizeBody) -> DetokenizeRequest:
    """Return what is to be decoded."""
    return DetokenizeRequest(body.model, tuple(body.tokens), bool(body.skip_special_tokens))


def tokens_object(tokens: Tokens, *, has_pieces: bool) -> dict[str, Any]:
    """Return the object that answers `/v1/tokenize`."""
    return {
        "count": len(tokens.token_ids),
        "max_model_len": tokens.context_tokens,
        "tokens": tokens.token_ids,
        "token_strs": tokens.pieces if has_pieces else None,
    }


def text_object(text: str) -> dict[str, Any]:
    """Return the object that answers `/v1/detokenize`: `prompt` is vLLM's name for the text, `text` SGLang's."""
    return {"prompt": text, "text": text}
