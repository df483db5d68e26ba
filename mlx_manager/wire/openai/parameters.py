"""Which parameters of OpenAI's API are honoured, which can't change a local answer, and which are refused.

`docs/api.md` shows these tables; a test compares. A field inside of something is written as its path:
`messages[].content[].index`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlx_manager.errors import InvalidRequest, UnsupportedParameter

# Accepted whatever they say: they label, route, bill or cache a request, and no local answer depends on them. Those of
# messages say where a prompt may be cached, repeat what stands beside them, or are a server's own and come back to it.
HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "moderation",
        "messages[].annotations",
        "messages[].cache_control",
        "messages[].extra_content",
        "messages[].parsed",
        "messages[].provider_specific_fields",
        "messages[].content[].annotations",
        "messages[].content[].cache_control",
        "messages[].content[].index",
        "messages[].content[].prompt_cache_breakpoint",
        "messages[].tool_calls[].cache_control",
        "messages[].tool_calls[].extra_content",
        "messages[].tool_calls[].index",
        "messages[].tool_calls[].provider_specific_fields",
        "messages[].tool_calls[].thought_signature",
        "messages[].tool_calls[].function.parsed_arguments",
        "messages[].tool_calls[].function.provider_specific_fields",
    }
)

# Accepted only with the value that means "not used": real clients send them so, and send back the assistant messages
# that they were given.
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "messages[].audio": (),
    "messages[].function_call": (),
    "messages[].refusal": (),
    "messages[].tool_calls": ([],),
}

# The names that a variable of a chat template can have, and how many a request may set.
TEMPLATE_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MOST_TEMPLATE_ARGUMENTS = 64

# Variables of the chat template that are ours to set.
RESERVED_TEMPLATE_ARGUMENTS = frozenset(
    {
        "messages",
        "conversation",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "chat_template",
        "return_dict",
        "return_tensors",
        "padding",
        "truncation",
        "max_length",
        "tokenizer_kwargs",
    }
)


def check_unsupported(
    extra: Mapping[str, Any],
    harmless: frozenset[str] = HARMLESS,
    neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL_VALUES,
    *,
    kind: str = "",
    place: str = "",
) -> None:
    """Raise UnsupportedParameter for the first field that would change the answer and isn't honoured.

    `extra` are the fields of one object that its schema doesn't name: of the body, or of what the tables call `kind`
    (`messages[].`) and the error `place` (`messages[3].`).
    """
    for name, value in extra.items():
        if f"{kind}{name}" not in harmless:
            _check_neutral(value, neutral.get(f"{kind}{name}"), f"{place}{name}")


def _check_neutral(value: Any, neutral: tuple[Any, ...] | None, param: str) -> None:
    if value is None or any(_is_same(value, allowed) for allowed in neutral or ()):
        return
    if neutral is None:
        raise UnsupportedParameter(f"Unknown parameter {param!r}. Leave it out.", param=param)
    hint = f" or send {' or '.join(map(repr, neutral))}" if neutral else ""
    raise UnsupportedParameter(
        f"This version does not support {param!r}. Leave it out{hint}.", param=param
    )


def _is_same(value: Any, neutral: Any) -> bool:
    # `False == 0` and `True == 1`, but who sends one doesn't mean the other.
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def check_template_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise UnsupportedParameter for a template variable that the server sets itself, InvalidRequest for no variable.

    Names of variables go into a header when the template doesn't read them.
    """
    if len(arguments) > MOST_TEMPLATE_ARGUMENTS:
        raise InvalidRequest(
            f"'chat_template_kwargs' has {len(arguments)} variables. Send {MOST_TEMPLATE_ARGUMENTS} at most.",
            param="chat_template_kwargs",
        )
    for name in arguments:
        if not TEMPLATE_ARGUMENT.fullmatch(name):
            raise InvalidRequest(
                f"'chat_template_kwargs' has {name[:64]!a}, which no template can read: a variable's name has up to 64 "
                "letters, digits and underscores of ASCII, and no digit first.",
                param="chat_template_kwargs",
            )
        if name in RESERVED_TEMPLATE_ARGUMENTS:
            raise UnsupportedParameter(
                f"'chat_template_kwargs' can't set {name!r}: the server does. Leave it out.",
                param="chat_template_kwargs",
            )
