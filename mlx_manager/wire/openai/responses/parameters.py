"""Which parameters of the Responses API can't change a local answer, and which are refused.

`docs/api.md` shows these tables; a test compares. A field inside of something is written as its path:
`tools[].async`, `input[].content[].index` (of a part of an item, wherever it stands there).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlx_manager.errors import UnsupportedParameter
from mlx_manager.wire.openai.parameters import check_unsupported
from mlx_manager.wire.openai.responses.schema import ResponsesBody

# Accepted whatever they say: they label, route, bill or cache a request, or are about tools that run at OpenAI.
# `client_metadata` is Codex's. Those of items and parts say where a prompt may be cached, repeat what stands beside, or
# are a client's or a server's own notes; what a tool is that `tool_choice` allows, `tools` says.
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
        "input[].created_by",
        "input[].end_turn",
        "input[].internal_chat_message_metadata_passthrough",
        "input[].parsed_arguments",
        "input[].content[].cache_control",
        "input[].content[].index",
        "input[].content[].parsed",
        "input[].content[].prompt_cache_breakpoint",
        "tool_choice.tools[].allowed_callers",
        "tool_choice.tools[].async",
        "tool_choice.tools[].defer_loading",
        "tool_choice.tools[].description",
        "tool_choice.tools[].output_schema",
        "tool_choice.tools[].parameters",
        "tool_choice.tools[].strict",
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
    "input[].async": (False,),
    "input[].caller": ({"type": "direct"},),
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
    extra = body.model_extra or {}
    check_unsupported(extra, HARMLESS, NEUTRAL_VALUES)
    options = extra.get("prompt_cache_options")
    # Of these only one asks for something else than an answer.
    prewarm = {"prewarm": options.get("prewarm")} if isinstance(options, dict) else {}
    check_inside(prewarm, "prompt_cache_options")
    for name, part in (("text", body.text), ("reasoning", body.reasoning)):
        check_inside((part.model_extra if part else None) or {}, name)
    check_included(body.include or ())


def check_inside(extra: Mapping[str, Any], kind: str, place: str | None = None) -> None:
    """Do the same for the fields of something inside, which the tables call `kind`; it is at `place` in the body."""
    check_unsupported(extra, HARMLESS, NEUTRAL_VALUES, kind=f"{kind}.", place=f"{place or kind}.")
