"""Which parameters of a request got another value than its client sent, or one that it left open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlx_manager.chat.events import Adjustment
from mlx_manager.chat.request import ChatRequest, Conversation
from mlx_manager.mlx_server.generation.model_text import (
    API_DEFAULTS,
    DEFAULT_XTC_THRESHOLD,
    ModelText,
)

EFFORT, BUDGET = "reasoning_effort", "thinking_token_budget"
RESULTS = "tool_results.media"
# What a client sends that has no wish.
USUAL_VERBOSITY = ("verbosity", "medium")


def adjustments(
    request: ChatRequest, text: ModelText, max_tokens: int, reordered: Sequence[Adjustment] = ()
) -> tuple[Adjustment, ...]:
    """Return what differs from the request and from the API's defaults; the answer may have `max_tokens`."""
    found = list[Adjustment]()
    if request.max_tokens is None or request.max_tokens > max_tokens:
        found.append(Adjustment("max_tokens", max_tokens, "context"))
    elif request.has_default_limit:
        found.append(Adjustment("max_tokens", max_tokens, "default"))
    for name, default in API_DEFAULTS.items():
        own = text.sampling_defaults[name]
        if getattr(request.sampling, name) is None and own != default:
            found.append(Adjustment(name, own, "generation_config"))
    if request.sampling.xtc_probability and request.sampling.xtc_threshold is None:
        found.append(Adjustment("xtc_threshold", DEFAULT_XTC_THRESHOLD, "default"))
    if isinstance(request.input, Conversation):
        found.extend(_of_conversation(request.input, text))
    if request.sampling.thinking_tokens is not None and text.family.reasoning is None:
        found.append(Adjustment(BUDGET, "left_out", "no_thoughts"))
    found.extend(reordered)
    return tuple(found)


def _of_conversation(conversation: Conversation, text: ModelText) -> Iterator[Adjustment]:
    for place in conversation.absent_tools:
        yield Adjustment(place, "left_out", "hosted_tool")
    if conversation.left_out:
        yield Adjustment(RESULTS, "left_out", "text_only")
    for name in conversation.unheld:
        yield Adjustment(name, "left_out", "unheld")
    unread = conversation.template_arguments.keys() - text.template_variables
    for name in sorted(unread - {EFFORT}):
        if (name, conversation.template_arguments[name]) != USUAL_VERBOSITY:
            yield Adjustment(name, "left_out", "chat_template")
    if EFFORT in unread:
        yield from _switched(EFFORT, conversation, text)
    elif EFFORT not in conversation.template_arguments:
        yield from _switched("thinking", conversation, text)


def _switched(name: str, conversation: Conversation, text: ModelText) -> Iterator[Adjustment]:
    """Say what became of a wish that the model thinks, or doesn't, for which its template has at most a switch."""
    is_on, has_level = conversation.thinking, name == EFFORT
    if is_on is None:
        was_honoured = not has_level
    elif text.has_thinking_switch:
        was_honoured = not (is_on and has_level)
    else:
        was_honoured = is_on == text.family.thinks and not (is_on and has_level)
    if not was_honoured:
        is_switched = bool(is_on) and text.has_thinking_switch
        yield Adjustment(name, "on" if is_switched else "left_out", "chat_template")
