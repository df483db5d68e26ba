"""Which parameters of Anthropic's API are honoured, which can't change a local answer, and which are refused.

`docs/api.md` shows these tables; a test compares. A field inside of something is written as its path:
`tools[].defer_loading`, `content[].citations` (of a block anywhere).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_manager.errors import ThreadsUnsupported, UnsupportedParameter

# Accepted wherever it stands and whatever it says: where a prompt may be cached changes no answer.
CACHE_CONTROL = "cache_control"

# Accepted whatever they say: they label, route, bill or hurry a request, or ask about Anthropic's cache, and no local
# answer depends on them.
HARMLESS = frozenset(
    {
        CACHE_CONTROL,
        "metadata",
        "service_tier",
        "speed",
        "inference_geo",
        "billing_policy",
        "fallback_credit_token",
        "diagnostics",
        "user_profile_id",
        "workspace_id",
        "tools[].eager_input_streaming",
    }
)

# A prompt has as many tokens whatever comes after it; some clients send the body of the request that is to follow.
HARMLESS_TO_A_COUNT = frozenset(
    {"max_tokens", "stream", "temperature", "top_p", "top_k", "stop_sequences", "priority"}
)

# Accepted only with the value that means "not used": real clients send them so.
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "container": (),
    "context_management": (
        {"edits": []},
        {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    ),
    "compaction": (),
    "fallbacks": ([],),
    "mcp_servers": ([],),
    "thread": (),
    "output_config.task_budget": (),
    "tools[].defer_loading": (False,),
    "tools[].input_examples": ([],),
    "tools[].allowed_callers": (["direct"],),
    "content[].citations": ([], {"enabled": False}),
    "content[].caller": ({"type": "direct"},),
    "content[].toolset_name": (),
}

# The client's tool runner asks for a thread unless it is told not to, and goes on without one when it meets this error.
REFUSALS: Mapping[str, type[UnsupportedParameter]] = {"thread": ThreadsUnsupported}


def check_unsupported(
    extra: Mapping[str, Any],
    *,
    kind: str = "",
    place: str = "",
    harmless: frozenset[str] = HARMLESS,
) -> None:
    """Raise UnsupportedParameter for the first field that would change the answer and isn't honoured.

    `extra` are the fields of one object that its schema doesn't name: of the body, or of what the tables call `kind`
    (`tools[].`) and the error `place` (`tools[3].`).
    """
    for name, value in extra.items():
        if name != CACHE_CONTROL and f"{kind}{name}" not in harmless:
            _check_neutral(value, NEUTRAL_VALUES.get(f"{kind}{name}"), f"{place}{name}")


def _check_neutral(value: Any, neutral: tuple[Any, ...] | None, param: str) -> None:
    if value is None or any(_is_same(value, allowed) for allowed in neutral or ()):
        return
    if neutral is None:
        raise UnsupportedParameter(f"Unknown parameter {param!r}. Leave it out.", param=param)
    hint = f" or send {' or '.join(map(repr, neutral))}" if neutral else ""
    raise REFUSALS.get(param, UnsupportedParameter)(
        f"This version does not support {param!r}. Leave it out{hint}.", param=param
    )


def _is_same(value: Any, neutral: Any) -> bool:
    # `0 == False`, and is not the same.
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
