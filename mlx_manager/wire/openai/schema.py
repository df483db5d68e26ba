"""The bodies of OpenAI's API that this version takes and gives, as the `openai` SDK 3.54 sends and reads them.

A body, its messages, their parts and calls keep every field that was sent. Which of those that change an answer are
honoured is decided in `parameters`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from mlx_manager.chat.events import Phase
from mlx_manager.wire.openai.thinking import Budget, ThinkingFields

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
LogprobCount = Annotated[int, Field(ge=0, le=20, strict=True)]
MAX_BIASES = 1024
MAX_CHOICES = 128
MAX_MODEL_ID = 256
MAX_STOP_STRINGS = 16
MAX_TOOLS = 1024
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
ChoiceCount = Annotated[int, Field(ge=1, le=MAX_CHOICES, strict=True)]
TokenCount = Annotated[int, Field(ge=1, lt=2**31)]
Verbosity = Literal["low", "medium", "high"]
# vLLM's numbers, of which the lower one goes first, or a word.
Priority = Literal["high", "normal", "low"] | Annotated[int, Field(strict=True)]
# `fail_fast`: a list of a million wrong items gets one complaint, not a million.


class ContentPart(BaseModel):
    """A piece of a message's content. This version understands those of type `text`."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class FunctionCall(BaseModel):
    """A function that the assistant called in an earlier turn; `arguments` is JSON as a string."""

    model_config = ConfigDict(extra="allow")

    name: str
    arguments: str


class ToolCallMessage(BaseModel):
    """A tool call that the assistant made in an earlier turn."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionDefinition(BaseModel):
    """A function that the model may call; `parameters` is a JSON schema of an object."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(BaseModel):
    """A tool. This version knows those of type `function`."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(BaseModel):
    """The name of a function."""

    model_config = ConfigDict(extra="forbid")

    name: str


class NamedToolChoice(BaseModel):
    """The one tool that must be called."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: NamedFunction


class AllowedFunction(BaseModel):
    """The name of a function; clients may describe it once more, which says nothing new."""

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class AllowedTool(BaseModel):
    """A tool that may be called."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: AllowedFunction


class AllowedTools(BaseModel):
    """Which tools may be called, and whether one of them must be."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedToolChoice(BaseModel):
    """Some of the tools, of which alone the model may choose."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind_of(value: object) -> object:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def _form_of_choice(value: object) -> str | None:
    kind = _kind_of(value)
    if kind is None and not isinstance(value, dict):
        return "Word"
    return "Named" if kind == "function" else "Allowed" if kind == "allowed_tools" else None


# By its form, so that a refusal is about that form alone.
ChatToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("Word")]
    | Annotated[NamedToolChoice, Tag("Named")]
    | Annotated[AllowedToolChoice, Tag("Allowed")],
    Discriminator(
        _form_of_choice,
        custom_error_type="tool_choice",
        custom_error_message="Input should be of a 'type', 'function' or 'allowed_tools'",
    ),
]


class ChatMessage(BaseModel):
    """One message; `content` may be null only beside tool calls.

    `reasoning_content` is what an assistant's message had as such; `reasoning` is another name for it, and
    `reasoning_details` and `thinking_blocks` are OpenRouter's and LiteLLM's, for lists of pieces. `phase` says what the
    assistant's content was, as in a response's items. With `prefix` the last message begins the answer.
    """

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallMessage] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[dict[str, Any]] | None = None
    thinking_blocks: list[dict[str, Any]] | None = None
    phase: Phase | None = None
    prefix: bool | None = None


class BegunFields(BaseModel):
    """Whether the last message, the assistant's, is the beginning of the answer, in vLLM's words."""

    continue_final_message: bool | None = Field(
        None,
        description="Whether the last message, the assistant's, is the beginning of the answer",
    )
    add_generation_prompt: bool | None = Field(
        None, description="`false` belongs to `continue_final_message`, `true` to any other request"
    )


class StreamOptions(BaseModel):
    """`include_usage` adds a last chunk with the token counts."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = False
    include_obfuscation: bool | None = False


class JsonSchemaDefinition(BaseModel):
    """A JSON schema; `strict` changes nothing, since an answer is held to it in any case."""

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str | None = None
    json_schema: Annotated[dict[str, Any], Field(alias="schema")] = {}
    strict: bool | None = None


class TextFormat(BaseModel):
    """Any text."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["json_object"]


class JsonSchemaFormat(BaseModel):
    """JSON of a schema."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["json_schema"]
    json_schema: JsonSchemaDefinition


def _form_of_format(value: object) -> str | None:
    kind = _kind_of(value)
    known = (("text", "Text"), ("json_object", "JsonObject"), ("json_schema", "JsonSchema"))
    return next((form for name, form in known if kind == name), None)


# Told apart by hand: the names of the forms are no part of a field's path, and those of types would look like it.
ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("Text")]
    | Annotated[JsonObjectFormat, Tag("JsonObject")]
    | Annotated[JsonSchemaFormat, Tag("JsonSchema")],
    Discriminator(
        _form_of_format,
        custom_error_type="response_format",
        custom_error_message="Input should be of a 'type', 'text', 'json_object' or 'json_schema'",
    ),
]


class StructuredOutputs(BaseModel):
    """What an answer must be, in vLLM's words; one of them. `grammar` is written in Lark's form or GBNF."""

    model_config = ConfigDict(extra="forbid")

    json_schema: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None


class GenerationBody(BaseModel):
    """What both completions endpoints share."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(min_length=1, max_length=MAX_MODEL_ID)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Probability | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES)] | None = None
    xtc_probability: Probability | None = None
    xtc_threshold: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    ignore_eos: bool | None = False
    priority: Priority | None = None
    structured_outputs: StructuredOutputs | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatCompletionBody(BegunFields, ThinkingFields, GenerationBody):
    """Body of `POST /v1/chat/completions`."""

    n: ChoiceCount | None = None

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = False
    top_logprobs: LogprobCount | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = (
        None
    )
    tool_choice: ChatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    thinking_token_budget: Budget | None = None
    include_reasoning: bool | None = None
    verbosity: Verbosity | None = None

    @property
    def shows_reasoning(self) -> bool:
        """Whether the client wants to see what the model thinks."""
        is_excluded = self.reasoning is not None and bool(self.reasoning.exclude)
        is_omitted = self.thinking is not None and self.thinking.display == "omitted"
        return self.include_reasoning is not False and not is_excluded and not is_omitted


class CompletionBody(GenerationBody):
    """Body of `POST /v1/completions`; `prompt` is a text or a list of token ids, or a list of several.

    `max_tokens` left out means 16, as in OpenAI's API; 0 writes nothing, for the prompt's own log-probabilities.
    `logprobs` is a number here.
    """

    n: ChoiceCount | None = None
    best_of: ChoiceCount | None = None

    prompt: (
        str
        | Annotated[list[int], Field(fail_fast=True)]
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: LogprobCount | None = None
    echo: bool | None = False
