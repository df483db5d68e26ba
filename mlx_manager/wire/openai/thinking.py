"""How a model is to think, in the words of the several APIs that clients of chat completions were written for.

OpenAI's own is `reasoning_effort`; OpenRouter's `reasoning` and `include_reasoning`, Anthropic's, DeepSeek's and Z.ai's
`thinking`, Qwen's `enable_thinking` and vLLM's `thinking_token_budget` say it, too, and proxies pass on what they get.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from mlx_manager.errors import InvalidRequest

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Budget = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
T = TypeVar("T")
# Something said, and where.
Said = tuple[str, T]


class ReasoningBody(BaseModel):
    """How the model is to think, in OpenRouter's words: how much, within how many tokens, and whether it is shown."""

    model_config = ConfigDict(extra="forbid")

    effort: Effort | None = None
    max_tokens: Budget | None = None
    enabled: bool | None = None
    exclude: bool | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None


class ThinkingBody(BaseModel):
    """The same in the words of Anthropic's API, which DeepSeek's and Z.ai's share."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["enabled", "adaptive", "auto", "disabled"]
    budget_tokens: Budget | None = None
    display: Literal["summarized", "omitted"] | None = None
    clear_thinking: bool | None = None


class ThinkingFields(BaseModel):
    """All of these fields of a body; what they say together must not contradict itself."""

    reasoning_effort: Effort | None = Field(None, description="How much to think")
    reasoning: ReasoningBody | None = Field(
        None, description="The same, as OpenRouter's API has it"
    )
    thinking: ThinkingBody | None = Field(
        None, description="The same, as Anthropic's, DeepSeek's and Z.ai's APIs have it"
    )
    enable_thinking: bool | None = Field(None, description="The same, as Qwen's API has it")


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a body says of thinking: a level, whether to think at all, within how many tokens; None where it doesn't.

    `variables` are for the model's template; of `unheld` parameters no local model can do what they ask for.
    """

    effort: Effort | None
    is_on: bool | None
    tokens: int | None
    variables: dict[str, Any]
    unheld: tuple[str, ...]


def thinking_of(body: ThinkingFields, budget: int | None = None) -> Thinking:
    """Return what a body says of thinking, `budget` being its `thinking_token_budget`.

    Raises InvalidRequest where it says one thing and another.
    """
    reasoning, thinking = body.reasoning or ReasoningBody(), body.thinking
    effort = _agreed(_efforts(body))
    tokens = _agreed(_budgets(body, budget))
    variables: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
    if thinking is not None and thinking.clear_thinking is not None:
        variables["clear_thinking"] = thinking.clear_thinking
    has_summary = reasoning.summary not in (None, "none")
    unheld = ("reasoning.summary",) if has_summary else ()
    return Thinking(effort, _agreed(_switches(body)), tokens, variables, unheld)


def _efforts(body: ThinkingFields) -> Iterator[Said[Effort]]:
    if body.reasoning_effort is not None:
        yield "reasoning_effort", body.reasoning_effort
    if body.reasoning is not None and body.reasoning.effort is not None:
        yield "reasoning.effort", body.reasoning.effort


def _budgets(body: ThinkingFields, budget: int | None) -> Iterator[Said[int]]:
    if budget is not None:
        yield "thinking_token_budget", budget
    if body.reasoning is not None and body.reasoning.max_tokens is not None:
        yield "reasoning.max_tokens", body.reasoning.max_tokens
    if body.thinking is not None and body.thinking.budget_tokens is not None:
        yield "thinking.budget_tokens", body.thinking.budget_tokens


def _switches(body: ThinkingFields) -> Iterator[Said[bool]]:
    for place, effort in _efforts(body):
        yield place, effort != "none"
    if (reasoning := body.reasoning) is not None:
        if reasoning.enabled is not None:
            yield "reasoning.enabled", reasoning.enabled
        elif reasoning.max_tokens is not None:
            yield "reasoning.max_tokens", True
    if body.thinking is not None:
        yield "thinking.type", body.thinking.type != "disabled"
    if body.enable_thinking is not None:
        yield "enable_thinking", body.enable_thinking


def _agreed(said: Iterator[Said[T]]) -> T | None:
    """Return what all say; None when nobody says anything."""
    first: Said[T] | None = None
    for place, value in said:
        if first is not None and value != first[1]:
            raise InvalidRequest(
                f"{place!r} contradicts {first[0]!r}. Send one of them.", param=place
            )
        first = first or (place, value)
    return None if first is None else first[1]
