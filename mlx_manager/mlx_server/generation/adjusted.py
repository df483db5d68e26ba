"""Which parameters of a request got another value than its client sent, or one that it left open."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_manager.chat.events import Adjustment
from mlx_manager.chat.request import ChatRequest, Conversation
from mlx_manager.mlx_server.generation.model_text import API_DEFAULTS, ModelText


def adjustments(
    request: ChatRequest, text: ModelText, max_tokens: int, reordered: Sequence[Adjustment] = ()
) -> tuple[Adjustment, ...]:
    """Return what differs from the request and from the API's defaults; the answer may have `max_tokens`."""
    found = list[Adjustment]()
    if request.max_tokens is None or request.max_tokens > max_tokens:
        found.append(Adjustment("max_tokens", max_tokens, "context"))
    for name, default in API_DEFAULTS.items():
        own = text.sampling_defaults[name]
        if getattr(request.sampling, name) is None and own != default:
            found.append(Adjustment(name, own, "generation_config"))
    if isinstance(request.input, Conversation):
        absent = request.input.absent_tools
        found.extend(Adjustment(place, "left_out", "hosted_tool") for place in absent)
    found.extend(reordered)
    return tuple(found)
