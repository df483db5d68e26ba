"""What of a request the model isn't given, and what it is told of it instead.

Agents read pictures and documents with their tools, and send the results back with every later turn. Refused, such a
conversation would be at its end; with a remark in its place the model can say so, or look for another way. What the
user shows is refused: there the remark would answer a question that was asked about the picture.

Agents also send tools that only their provider runs, such as a search of the web, beside their own and unasked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# By the type of a part or a block in any of the APIs.
NAMES: Mapping[str, str] = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "document": "document",
    "file": "file",
    "input_file": "file",
}

# What the types of tools begin with that agents send beside their own, and OpenAI or Anthropic run.
HOSTED_TOOLS = ("web_search", "web_fetch", "image_generation")


def hosted_beside_others(types: Sequence[object]) -> set[int]:
    """Return the places of tools that can be left out: those that only their provider runs, if there are others."""
    hosted = {index for index, kind in enumerate(types) if is_hosted(kind)}
    return hosted if len(hosted) < len(types) else set()


def is_hosted(kind: object) -> bool:
    """Whether a tool of this type is one that only its provider runs, and that is left out beside others."""
    return isinstance(kind, str) and kind.startswith(HOSTED_TOOLS)


def not_to_be_chosen(tool: str, auto: str) -> str:
    """Return what to tell a client whose `tool_choice` names a tool that is left out; `auto` is how to name none."""
    return (
        f"'tool_choice' names {tool!r}, which only its provider runs and which is left out here. Name one of your own "
        f"tools, or send {auto}."
    )


def remark(kind: str) -> str:
    """Return what stands in the place of a part of a type that is among `NAMES`."""
    return f"[{NAMES[kind]} left out: this model reads text only]"
