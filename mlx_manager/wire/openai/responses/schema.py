"""The body of OpenAI's Responses API, as the `openai` SDK 3.54 sends it.

A body, its items and their parts, its tools, its `text` and its `reasoning` keep every field that was sent. Which of
those that change an answer are honoured is decided in `parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from mlx_manager.chat.events import Phase
from mlx_manager.wire.openai.schema import (
    MAX_TOOLS,
    GenerationBody,
    LogprobCount,
    TokenCount,
    Verbosity,
)
from mlx_manager.wire.openai.thinking import Budget, Effort

MAX_RESPONSE_ID = 160
MAX_METADATA = 16
MetadataName = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Summary = Literal["auto", "concise", "detailed", "none"]


class Part(BaseModel):
    """A piece of an item's content. This version understands text.

    `annotations` and `logprobs` are of what an assistant said; they are kept, and no model is told of them.
    """

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


class Item(BaseModel):
    """One item of `input`: a message, a call, its output, reasoning, or a reference to one that is stored, by its `id`.

    A message and a reference may leave out their type. `FIELDS_OF` says which fields belong to which type.
    """

    model_config = ConfigDict(extra="allow")

    type: str | None = None
    id: Annotated[str, Field(max_length=MAX_RESPONSE_ID)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    phase: Phase | None = None
    summary: list[Part] | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


REFERENCE = "item_reference"
FIELDS_OF: Mapping[str, frozenset[str]] = {
    "message": frozenset({"role", "content", "phase"}),
    "function_call": frozenset({"call_id", "name", "namespace", "arguments"}),
    "function_call_output": frozenset({"call_id", "name", "namespace", "output"}),
    "reasoning": frozenset({"summary", "content", "encrypted_content"}),
    REFERENCE: frozenset(),
}


def _as_items(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Items = Annotated[
    list[Item],
    Field(fail_fast=True),
    BeforeValidator(_as_items, json_schema_input_type=str | list[Item]),
]


class FunctionTool(BaseModel):
    """A tool. This version knows those of type `function`; `parameters` is a JSON schema of an object.

    One of type `namespace` has a name, too, and `tools`, which are functions.
    """

    model_config = ConfigDict(extra="allow")

    type: str
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoiceObject(BaseModel):
    """The one tool that must be called."""

    model_config = ConfigDict(extra="allow")

    type: str
    name: str | None = None


class AllowedToolsChoice(BaseModel):
    """Some of the tools, of which alone the model may choose."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[ToolChoiceObject], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)
    ]


def _form_of_choice(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind is None and not isinstance(value, dict):
        return "Word"
    return "Allowed" if kind == "allowed_tools" else "One"


# By its form, so that a refusal is about that form alone.
ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("Word")]
    | Annotated[AllowedToolsChoice, Tag("Allowed")]
    | Annotated[ToolChoiceObject, Tag("One")],
    Discriminator(_form_of_choice),
]


class TextFormat(BaseModel):
    """What the text of an answer must be; `name`, `schema` and what belongs to it are those of `json_schema`."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextConfig(BaseModel):
    """How text is written."""

    model_config = ConfigDict(extra="allow")

    format: TextFormat | None = None
    verbosity: Verbosity | None = None


class Reasoning(BaseModel):
    """How the model thinks."""

    model_config = ConfigDict(extra="allow")

    effort: Effort | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None


class IncludeQuery(BaseModel):
    """What is asked for besides. The SDK writes a list as `include[]`."""

    include: list[str] = Field(default_factory=list)
    include_in_brackets: list[str] = Field(default_factory=list, alias="include[]")

    @property
    def included(self) -> list[str]:
        """The names, however they were written."""
        return [*self.include, *self.include_in_brackets]


class ItemsQuery(IncludeQuery):
    """Which page of items is asked for."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


class RetrieveQuery(IncludeQuery):
    """How a stored response is asked for. Nothing here is padded, with `include_obfuscation` or without."""

    stream: bool = False
    starting_after: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    include_obfuscation: bool | None = None

    @property
    def after(self) -> int:
        """The number of the event behind which a stream begins; -1 for all of it."""
        return -1 if self.starting_after is None else self.starting_after


class ResponsesBody(GenerationBody):
    """Body of `POST /v1/responses`: OpenAI's fields, and the controls of the other endpoints beside them."""

    input: Items = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=MAX_RESPONSE_ID)] | None = None
    store: bool | None = True
    background: bool | None = False
    max_output_tokens: TokenCount | None = None
    include: list[str] | None = None
    top_logprobs: LogprobCount | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    # The SDK's `parse` sends it beside `text`.
    verbosity: Verbosity | None = None
    thinking_token_budget: Budget | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: (
        Annotated[dict[MetadataName, MetadataValue], Field(max_length=MAX_METADATA)] | None
    ) = None

    @property
    def is_stored(self) -> bool:
        """Whether the response can be asked for again; it is unless the client says no."""
        return self.store is not False
