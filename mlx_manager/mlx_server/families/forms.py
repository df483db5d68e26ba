"""How a family's calls are written out: for grammars that hold answers to it, and for the beginning of forced calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Parameters:
    """Arguments one by one, each between `open`, in which its name stands for `{key}`, and `close`.

    A string stands there as it is, everything else as JSON; `{is_string}` in `open` says which (`true` or `false`), and
    `{type}` the type of the value. `{escaped_key}` is the name without quotes and ampersands.
    """

    open: str
    close: str


@dataclass(frozen=True, slots=True)
class Keywords:
    """Arguments as `name=value`, with `between` from one to the next; values are JSON, which Python's are near to."""

    between: str = ", "


@dataclass(frozen=True, slots=True)
class Quoted:
    """Arguments as an object with bare names, and with `quote` around strings, which stand there as they are."""

    quote: str


Arguments = Literal["json"] | Parameters | Keywords | Quoted


@dataclass(frozen=True, slots=True)
class CallForm:
    """The text of calls, piece by piece, whose marks may be tokens.

    `begin` is the mark that no text begins with by chance, "" where calls have none; an answer begins its first call
    with `before` and `begin`. Then come, for each call, `lead`, `head` (in which `{name}` is the tool's name, `{json}`
    the same as JSON, `{number}` the call's number in the conversation, from 0, and `{place}` that in the answer, from
    1), its arguments and `tail`; `between` stands between two calls, None where there is one only, and `last` behind
    the last.
    """

    begin: str
    head: str
    arguments: Arguments
    tail: str
    lead: str = ""
    before: str = ""
    between: str | None = None
    last: str = ""

    @property
    def opening(self) -> str:
        """What an answer begins with that is to be a call of whichever tool."""
        return self.before + self.begin + self.lead

    def opening_of(self, name: str) -> str:
        """What an answer begins with that is to be a call of the tool named."""
        return (self.opening + self.head_of(name)).rstrip(" ")

    @property
    def lead_again(self) -> str:
        """What stands between `between` and the head of a call: a mark that begins each call begins all of it anew."""
        return self.lead if self.begin and self.begin in (self.between or "") else ""

    def head_of(self, name: str, number: int = 0, place: int = 1) -> str:
        """What a call of the tool named begins with, behind `lead`."""
        quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        filled = self.head.replace("{number}", str(number)).replace("{place}", str(place))
        filled = filled.replace("{json}", quoted)
        return filled.replace("{name}", name)


HERMES = CallForm(
    "<tool_call>",
    '{"name": {json}, "arguments": ',
    "json",
    "}\n</tool_call>",
    lead="\n",
    between="\n<tool_call>",
)
QWEN_CODER = CallForm(
    "<tool_call>",
    "<function={name}>\n",
    Parameters("<parameter={key}>\n", "\n</parameter>\n"),
    "</function>\n</tool_call>",
    lead="\n",
    between="\n<tool_call>",
)
GLM = CallForm(
    "<tool_call>",
    "{name}\n",
    Parameters("<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>\n"),
    "</tool_call>",
    between="\n<tool_call>",
)
GRANITE = CallForm(
    "<|tool_call|>", '{"name": {json}, "arguments": ', "json", "}", lead="[", last="]", between=", "
)
MISTRAL_ARRAY = CallForm(
    "[TOOL_CALLS]", '{"name": {json}, "arguments": ', "json", "}", lead="[", last="]", between=", "
)
MISTRAL = CallForm("[TOOL_CALLS]", "{name}[ARGS]", "json", "", between="[TOOL_CALLS]")
KIMI = CallForm(
    "<|tool_call_begin|>",
    "{name}:{number}<|tool_call_argument_begin|>",
    "json",
    "<|tool_call_end|>",
    lead="functions.",
    before="<|tool_calls_section_begin|>",
    between="<|tool_call_begin|>",
    last="<|tool_calls_section_end|>",
)
DEEPSEEK = CallForm(
    "<｜tool▁call▁begin｜>",
    "{name}<｜tool▁sep｜>",
    "json",
    "<｜tool▁call▁end｜>",
    before="<｜tool▁calls▁begin｜>",
    between="<｜tool▁call▁begin｜>",
    last="<｜tool▁calls▁end｜>",
)
DEEPSEEK_FENCED = CallForm(
    "<｜tool▁call▁begin｜>",
    "{name}\n```json\n",
    "json",
    "\n```<｜tool▁call▁end｜>",
    lead="function<｜tool▁sep｜>",
    before="<｜tool▁calls▁begin｜>",
    between="\n<｜tool▁call▁begin｜>",
    last="<｜tool▁calls▁end｜>",
)
MINIMAX = CallForm(
    "<minimax:tool_call>",
    '<invoke name="{name}">\n',
    Parameters('<parameter name="{key}">', "</parameter>\n"),
    "</invoke>\n",
    lead="\n",
    between="",
    last="</minimax:tool_call>",
)
# No grammar says this one: a special token stands within its marks.
DEEPSEEK_INVOCATIONS = CallForm(
    "<｜DSML｜function_calls>",
    '<｜DSML｜invoke name="{name}">\n',
    Parameters('<｜DSML｜parameter name="{key}" string="{is_string}">', "</｜DSML｜parameter>\n"),
    "</｜DSML｜invoke>\n",
    lead="\n",
    between="",
    last="</｜DSML｜function_calls>",
)
# Nor this one, whose marks are several tokens and a word.
XTML = CallForm(
    "<|open|>tools<|sep|>",
    '<|open|>call tool="{name}" index="{place}"<|sep|>',
    Parameters(
        '<|open|>argument key="{escaped_key}" type="{type}"<|sep|>', "<|close|>argument<|sep|>"
    ),
    "<|close|>call<|sep|>",
    between="",
    last="<|close|>tools<|sep|>",
)
# Nor this one, whose calls are messages.
HARMONY = CallForm(
    "<|channel|>",
    "commentary to=functions.{name} <|constrain|>json<|message|>",
    "json",
    "<|call|>",
    between="<|start|>assistant<|channel|>",
)
LFM2 = CallForm(
    "<|tool_call_start|>", "{name}(", Keywords(), ")", lead="[", between=", ",
    last="]<|tool_call_end|>",
)  # fmt: skip
GEMMA_4 = CallForm(
    "<|tool_call>",
    "{name}",
    Quoted('<|"|>'),
    "<tool_call|>",
    lead="call:",
    between="<|tool_call>",
)
FUNCTION_GEMMA = CallForm(
    "<start_function_call>",
    "{name}",
    Quoted("<escape>"),
    "<end_function_call>",
    lead="call:",
    between="<start_function_call>",
)
BARE = CallForm("", '{"name": {json}, "parameters": ', "json", "}")
