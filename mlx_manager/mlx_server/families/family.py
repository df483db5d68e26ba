"""What differs between model families, as data: how they think and how they call tools.

A family is told from the chat template that a model brings, because that is what the model was trained with. Sources:
the published templates of the models named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mlx_manager.mlx_server.families.calls import (
    Grammar,
    invocations,
    json_calls,
    named,
    pythonic,
    tagged,
)

# Marks that a model puts around its thoughts; the first pair that its template knows is its own.
REASONING_MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
)


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """Calls that begin with a mark: what stands behind it, and the mark that ends it, if there is one."""

    grammar: Grammar
    end: str | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """How a family of models writes what is not text.

    `signs` stand in the templates of its models, all of them. `calls` are the marks that begin calls; `bare` are first
    letters of an answer that may be a call without any mark. `silent` marks mean nothing by themselves. `forced` is
    what an answer begins with that is to be a call of whichever tool, and of the one named. `call_id_length`: how long
    the template wants ids to be.
    """

    name: str
    signs: tuple[str, ...] = ()
    calls: Mapping[str, CallSyntax] = field(default_factory=dict)
    bare: Mapping[str, Grammar] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    forced: tuple[str, str] | None = None
    reasoning: tuple[str, str] | None = None
    call_id_length: int | None = None

    @property
    def marks(self) -> frozenset[str]:
        """All marks, some of which are special tokens of the model."""
        own = (*self.calls, *self.silent, *(self.reasoning or ()))
        ends = (syntax.end for syntax in self.calls.values() if syntax.end)
        return frozenset((*own, *ends))


_IN_TAGS = {"<tool_call>": CallSyntax(tagged("</tool_call>"), "</tool_call>")}
_JSON_FORCED = ("<tool_call>\n", '<tool_call>\n{{"name": "{name}", "arguments":')
HERMES = Family("hermes", ("<tool_call>",), _IN_TAGS, forced=_JSON_FORCED)

# The first whose signs are all there; those with more of them stand before those with fewer.
FAMILIES = (
    Family(
        "kimi",
        ("<|tool_call_argument_begin|>",),
        {
            "<|tool_call_begin|>": CallSyntax(
                named("<|tool_call_argument_begin|>", "<|tool_call_end|>"), "<|tool_call_end|>"
            )
        },
        silent=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
    Family(
        "deepseek",
        ("<｜tool▁sep｜>",),
        {
            "<｜tool▁call▁begin｜>": CallSyntax(
                named("<｜tool▁sep｜>", "<｜tool▁call▁end｜>"), "<｜tool▁call▁end｜>"
            )
        },
        silent=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ),
    Family(
        "minimax",
        ("<minimax:tool_call>",),
        {
            "<minimax:tool_call>": CallSyntax(
                invocations("</minimax:tool_call>"), "</minimax:tool_call>"
            )
        },
    ),
    Family(
        "mistral",
        ("[TOOL_CALLS]",),
        {"[TOOL_CALLS]": CallSyntax(named("[ARGS]", None, skips="[CALL_ID]"))},
        call_id_length=9,
    ),
    Family(
        "lfm2",
        ("<|tool_call_start|>",),
        {"<|tool_call_start|>": CallSyntax(pythonic("<|tool_call_end|>"), "<|tool_call_end|>")},
    ),
    Family("qwen3-coder", ("<tool_call>", "<function="), _IN_TAGS),
    Family("glm", ("<tool_call>", "<arg_key>"), _IN_TAGS),
    HERMES,
    Family(
        "granite",
        ("<|tool_call|>",),
        {"<|tool_call|>": CallSyntax(json_calls)},
        forced=("<|tool_call|>", '<|tool_call|>[{{"name": "{name}", "arguments":'),
    ),
    Family(
        "llama3",
        ("<|python_tag|>",),
        {"<|python_tag|>": CallSyntax(json_calls)},
        bare={"{": json_calls, "[": pythonic(None)},
        forced=("", '{{"name": "{name}", "parameters":'),
    ),
    Family(
        "llama3",
        ("<|start_header_id|>", "tools"),
        bare={"{": json_calls, "[": pythonic(None)},
        forced=("", '{{"name": "{name}", "parameters":'),
    ),
)


def family_of(template: str) -> Family:
    """Return the family that a chat template speaks for; Hermes's where a template has no calls of its own."""
    found = next((one for one in FAMILIES if all(sign in template for sign in one.signs)), HERMES)
    reasoning = next((pair for pair in REASONING_MARKS if pair[1] in template), None)
    return replace(found, reasoning=reasoning)
