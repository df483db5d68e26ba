"""Which parameters of the Responses API can't change a local answer, and which are refused.

`docs/api.md` shows these tables; a test compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlx_manager.errors import UnsupportedParameter
from mlx_manager.wire.openai.parameters import check_unsupported
from mlx_manager.wire.openai.responses.schema import ResponsesBody

# Accepted whatever they say: they label, route, bill or cache a request, or are about tools that run at OpenAI.
# `client_metadata` is Codex's.
HARMLESS = frozenset(
    {
        "user",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "moderation",
        "max_tool_calls",
        "background_options",
        "client_metadata",
    }
)

# Accepted only with the value that means "not used": real clients send them so.
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "truncation": ("disabled",),
    "conversation": (),
    "personality": (),
    "prompt": (),
    "context_management": ([],),
    "access_programs": (),
    "prompt_cache_options.prewarm": (False,),
    "image": (),
    "reasoning.context": ("auto",),
    "reasoning.mode": ("standard",),
    "tools[].async": (False,),
    "tools[].defer_loading": (False,),
    "tools[].allowed_callers": (["direct"],),
    "tools[].output_schema": (),
}

LOGPROBS = "message.output_text.logprobs"
# Reasoning has its text in `content`, too; but many clients send back only this.
ENCRYPTED = "reasoning.encrypted_content"
INCLUDABLE = (LOGPROBS, ENCRYPTED)


def check_included(names: Iterable[str]) -> None:
    """Raise UnsupportedParameter for what can't be included."""
    for name in names:
        if name not in INCLUDABLE:
            raise UnsupportedParameter(
                f"This version can't include {name!r}. It knows {', '.join(map(repr, INCLUDABLE))}.",
                param="include",
            )


def check_supported(body: ResponsesBody) -> None:
    """Raise UnsupportedParameter for the first field that would change the answer and isn't honoured."""
    check_unsupported(body.model_extra or {}, HARMLESS, NEUTRAL_VALUES)
    options = (body.model_extra or {}).get("prompt_cache_options")
    # Of these only one asks for something else than an answer.
    prewarm = {"prewarm": options.get("prewarm")} if isinstance(options, dict) else {}
    extras = {
        "prompt_cache_options": prewarm,
        "text": body.text.model_extra if body.text else None,
        "reasoning": body.reasoning.model_extra if body.reasoning else None,
    }
    for name, extra in extras.items():
        named = {f"{name}.{field}": value for field, value in (extra or {}).items()}
        check_unsupported(named, HARMLESS, NEUTRAL_VALUES)
    check_included(body.include or ())


def check_tool(extra: Mapping[str, Any], place: str) -> None:
    """Do the same for the fields of a tool at `place`: `tools[2]`, or `tools[2].tools[0]`."""
    neutral = {name.replace("tools[]", place): values for name, values in NEUTRAL_VALUES.items()}
    named = {f"{place}.{name}": value for name, value in extra.items()}
    check_unsupported(named, frozenset(), neutral)
