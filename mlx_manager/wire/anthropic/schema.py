"""The bodies of Anthropic's API that this version takes, as the `anthropic` SDK 2.12 and older ones send them.

Blocks and tools stay as they were sent until `requests` reads each as what its `type` says: only so can an error name
the place, and what is wrong there. Which fields that aren't named here change an answer is decided in `parameters`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
MAX_MODEL_ID = 256
MAX_STOP_SEQUENCES = 16
StopSequence = Annotated[str, Field(min_length=1, max_length=1000)]
# Less than this makes no sense to Anthropic's API either.
ThinkingBudget = Annotated[int, Field(ge=1024, lt=2**31)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
MAX_TOOLS = 1024
Lifecycle = Literal["active", "deprecated", "retired"]
# `fail_fast`: a list of a million wrong items gets one complaint, not a million.
Blocks = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


class Open(BaseModel):
    """Keeps every field that was sent."""

    model_config = ConfigDict(extra="allow")


class TextBlock(Open):
    """A piece of text."""

    text: str


class MediaBlock(Open):
    """An image, or a document that isn't text. Nothing of it is read."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["image", "document"]
    source: dict[str, Any]


class DocumentBlock(Open):
    """A document of text."""

    source: dict[str, Any]
    title: str | None = None
    context: str | None = None


class TextSource(Open):
    """The text of a document."""

    data: str
    media_type: str | None = None


class ContentSource(Open):
    """The same as blocks."""

    content: str | Blocks


class SearchResultBlock(Open):
    """What a search has found: text, and where it is from."""

    source: str
    title: str
    content: Blocks


class ThinkingBlock(Open):
    """What the assistant thought in an earlier turn; a client of another server may have no signature."""

    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Open):
    """Thinking that only Anthropic can read."""

    data: str


class ToolUseBlock(Open):
    """A call that the assistant made in an earlier turn."""

    id: Name
    name: Name
    input: dict[str, Any]


class ToolResultBlock(Open):
    """What a tool has answered to a call."""

    tool_use_id: Name
    content: str | Blocks | None = None
    is_error: bool | None = None


class MessageTurn(BaseModel):
    """One turn. `system` stands in the middle of a conversation where its instructions change."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class CustomTool(Open):
    """A function that the client runs; `input_schema` is the JSON schema of its arguments."""

    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class ToolChoiceBody(BaseModel):
    """`any` tool or the one `tool` must be called; `auto` leaves it to the model."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingBody(BaseModel):
    """Whether the model thinks before it answers, and whether the client wants to see it.

    `between_tools` lets it think only when it goes on from the result of a tool.
    """

    model_config = ConfigDict(extra="forbid")

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: ThinkingBudget | None = None
    display: Literal["summarized", "omitted"] | None = None


class JsonFormat(BaseModel):
    """JSON of a schema."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputBody(Open):
    """How much effort an answer is worth, and what it must be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class PromptBody(Open):
    """What a prompt is made of."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_MODEL_ID)]
    messages: Annotated[list[MessageTurn], Field(min_length=1, fail_fast=True)]
    system: str | Blocks | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = (
        None
    )
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputBody | None = None
    output_format: JsonFormat | None = None


class CountTokensBody(PromptBody):
    """Body of `POST /v1/messages/count_tokens`."""


class MessagesBody(PromptBody):
    """Body of `POST /v1/messages`. Today's SDK has no `temperature`, `top_p` and `top_k`; older ones do.

    `priority` is this server's own.
    """

    max_tokens: Annotated[int, Field(ge=0, lt=2**31)]
    stream: bool | None = False
    stop_sequences: Annotated[list[StopSequence], Field(max_length=MAX_STOP_SEQUENCES)] | None = (
        None
    )
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    priority: Literal["high", "normal", "low"] | None = None

    @property
    def shows_thinking(self) -> bool:
        """Whether the client wants to see what the model thinks."""
        return self.thinking is None or self.thinking.display != "omitted"


class ModelsQuery(BaseModel):
    """Which of the models are listed: a page of `limit`, after or before the one with an id."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=1000)] = Field(
        20, description="How many models a page has, up to 1000 (20)"
    )
    after_id: str | None = Field(None, description="The page behind the model with this id")
    before_id: str | None = Field(None, description="The page before the model with this id")
    lifecycle: Annotated[list[Lifecycle], Field(max_length=3)] | None = Field(
        None,
        description="Only those in one of these stages, as `lifecycle[]` or several times. All models here are "
        "`active`, and none is `deprecated` or `retired`",
    )
    workspace_id: str | None = Field(None, description="Accepted: there are no workspaces here")
    beta: bool | None = Field(
        None, description="Accepted: it comes with the parts of the SDK that are called beta"
    )
