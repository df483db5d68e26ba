"""What differs between model families, as data: how they think and how they call tools.

A family is told from the chat template that a model brings, because that is what the model was trained with, and where
that says nothing of calls from the model's own tokens. Sources: the published templates of the models named.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from mlx_manager.errors import ModelLoadFailed
from mlx_manager.mlx_server.families import forms, harmony
from mlx_manager.mlx_server.families.forms import CallForm
from mlx_manager.mlx_server.families.gemma_calls import gemma_calls
from mlx_manager.mlx_server.families.json_calls import json_calls, named
from mlx_manager.mlx_server.families.parameter_calls import invocations, tagged, xtml
from mlx_manager.mlx_server.families.python_calls import either, fenced
from mlx_manager.mlx_server.families.syntax import Grammar

# How a model without a place for tools in its template is told of them: in its family's form,
IN_FORM = """You can call these functions. Each line describes one as JSON:
{tools}
To call one, answer in this form, and wait for its result:
{call}"""
# in the most common one,
IN_TAGS = """You can call these functions. Each line describes one as JSON:
{tools}
To call one, answer with a JSON object between these marks, and wait for its result:
<tool_call>
{{"name": "function name", "arguments": {{}}}}
</tool_call>"""
# and in Google's for Gemma 3: https://ai.google.dev/gemma/docs/capabilities/function-calling
AS_OBJECT = """You can call these functions. Each line describes one as JSON:
{tools}
To call one, answer with nothing but a JSON object in this form, and wait for its result:
{{"name": "function name", "parameters": {{}}}}"""
# How a result is told where the template has no place for it: in the most common form, and in words.
IN_RESPONSE = "<tool_response>\n{result}\n</tool_response>"
IN_WORDS = "Result of {name}:\n{result}"
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

    `signs` stand in the templates of its models, all of them; `are_tokens` where they are special tokens that were made
    for its calls. `calls` are the marks that begin calls; `bare` are first letters of an answer that may be a call
    without any mark. `silent` marks mean nothing by themselves where calls may be, those of `framing` nowhere. `form`
    is how its calls are written out when they must be made or kept to a schema; None when no grammar says it, and then
    `unsaid_form` is how they are written out. `ends` are marks that end an answer, whatever the model's settings say.
    `in_messages`: answers are in Harmony's form. `behind_thoughts` stands between thoughts and what follows them.

    The rest is about its templates: how long they want ids of calls to be, or that they want `call_ids_name_tools`;
    that they know `one_call_a_message`; and `instructions`, which tell a model of tools whose template has no place for
    them, as `results` tell it of theirs.
    """

    name: str
    signs: tuple[str, ...] = ()
    calls: Mapping[str, CallSyntax] = field(default_factory=dict)
    are_tokens: bool = False
    bare: Mapping[str, Grammar] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    framing: tuple[str, ...] = ()
    form: CallForm | None = None
    unsaid_form: CallForm | None = None
    ends: tuple[str, ...] = ()
    in_messages: bool = False
    reasoning: tuple[str, str] | None = None
    behind_thoughts: str = "\n\n"
    call_id_length: int | None = None
    call_ids_name_tools: bool = False
    one_call_a_message: bool = False
    instructions: str = IN_FORM
    results: str = IN_RESPONSE

    @property
    def thinks(self) -> bool:
        """Whether its models have a place for thoughts."""
        return self.reasoning is not None or self.in_messages

    @property
    def written_form(self) -> CallForm:
        """How its calls are written out."""
        form = self.form or self.unsaid_form
        assert form is not None, f"nobody has said how {self.name} writes calls"
        return form

    @property
    def marks(self) -> frozenset[str]:
        """All marks, some of which are special tokens of the model."""
        own = (*self.calls, *self.silent, *self.framing, *(self.reasoning or ()))
        ends = (syntax.end for syntax in self.calls.values() if syntax.end)
        return frozenset((*own, *ends))


_IN_TAGS = {"<tool_call>": CallSyntax(tagged("</tool_call>"), "</tool_call>")}
HERMES = Family("hermes", ("<tool_call>",), _IN_TAGS, form=forms.HERMES, instructions=IN_TAGS)
_DEEPSEEK = Family(
    "deepseek",
    ("<｜tool▁sep｜>",),
    {
        "<｜tool▁call▁begin｜>": CallSyntax(
            named("<｜tool▁sep｜>", "<｜tool▁call▁end｜>"), "<｜tool▁call▁end｜>"
        )
    },
    are_tokens=True,
    silent=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    form=forms.DEEPSEEK,
)
_MISTRAL = Family(
    "mistral",
    ("[TOOL_CALLS]",),
    {"[TOOL_CALLS]": CallSyntax(named("[ARGS]", None, skips="[CALL_ID]"))},
    form=forms.MISTRAL_ARRAY,
    are_tokens=True,
    call_id_length=9,
)
_LFM2 = Family(
    "lfm2",
    ("<|tool_call_start|>",),
    {"<|tool_call_start|>": CallSyntax(either("<|tool_call_end|>"), "<|tool_call_end|>")},
    are_tokens=True,
    form=forms.LFM2,
)
_BARE = {"{": either(None), "[": either(None)}
_LLAMA_3 = Family(
    "llama3",
    ("<|start_header_id|>", "tools"),
    bare=_BARE,
    form=forms.BARE,
    instructions=AS_OBJECT,
    results=IN_WORDS,
)
_DSML = "｜DSML｜"

# The first whose signs are all there; those with more of them stand before those with fewer. Of one name the last is
# what the name alone means.
FAMILIES = (
    Family(
        "gpt-oss",
        (harmony.CHANNEL, harmony.CALL),
        silent=harmony.MARKS,
        unsaid_form=forms.HARMONY,
        ends=(harmony.CALL, harmony.RETURN),
        in_messages=True,
        reasoning=(harmony.ANALYSIS, harmony.END),
        one_call_a_message=True,
    ),
    Family(
        "gemma4",
        ("<|tool_call>", "<tool_call|>"),
        {"<|tool_call>": CallSyntax(gemma_calls('<|"|>', "<tool_call|>"), "<tool_call|>")},
        are_tokens=True,
        silent=('<|"|>',),
        form=forms.GEMMA_4,
        ends=("<|tool_response>",),
        reasoning=("<|channel>thought", "<channel|>"),
    ),
    Family(
        "functiongemma",
        ("<start_function_call>",),
        {
            "<start_function_call>": CallSyntax(
                gemma_calls("<escape>", "<end_function_call>"), "<end_function_call>"
            )
        },
        are_tokens=True,
        silent=("<escape>",),
        form=forms.FUNCTION_GEMMA,
        ends=("<start_function_response>",),
    ),
    Family(
        "kimi",
        ("<|tool_call_argument_begin|>",),
        {
            "<|tool_call_begin|>": CallSyntax(
                named("<|tool_call_argument_begin|>", "<|tool_call_end|>"), "<|tool_call_end|>"
            )
        },
        are_tokens=True,
        silent=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        form=forms.KIMI,
        call_ids_name_tools=True,
    ),
    Family(
        "kimi-k3",
        ("<|open|>", "<|close|>", "<|sep|>"),
        {"<|open|>tools<|sep|>": CallSyntax(xtml, "<|close|>tools<|sep|>")},
        are_tokens=True,
        framing=(
            "<|open|>response<|sep|>",
            "<|close|>response<|sep|>",
            "<|close|>message<|sep|>",
            "<|end_of_msg|>",
        ),
        unsaid_form=forms.XTML,
        ends=("<|end_of_msg|>",),
        reasoning=("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        behind_thoughts="<|open|>response<|sep|>",
    ),
    replace(
        _DEEPSEEK,
        signs=("<｜tool▁sep｜>", "```json"),
        are_tokens=False,
        form=forms.DEEPSEEK_FENCED,
    ),
    _DEEPSEEK,
    Family(
        "deepseek-v3.2",
        (_DSML,),
        # V3.2's blocks of calls and V4's.
        {
            f"<{_DSML}{block}>": CallSyntax(
                invocations(f"</{_DSML}{block}>", _DSML), f"</{_DSML}{block}>"
            )
            for block in ("function_calls", "tool_calls")
        },
        are_tokens=True,
        unsaid_form=forms.DEEPSEEK_INVOCATIONS,
    ),
    Family(
        "minimax",
        ("<minimax:tool_call>",),
        {
            "<minimax:tool_call>": CallSyntax(
                invocations("</minimax:tool_call>"), "</minimax:tool_call>"
            )
        },
        are_tokens=True,
        form=forms.MINIMAX,
    ),
    replace(_MISTRAL, signs=("[TOOL_CALLS]", "[ARGS]"), form=forms.MISTRAL),
    _MISTRAL,
    _LFM2,
    replace(_LFM2, signs=("<|tool_list_start|>",)),
    Family("qwen3-coder", ("<tool_call>", "<function="), _IN_TAGS, form=forms.QWEN_CODER),
    Family("glm", ("<tool_call>", "<arg_key>"), _IN_TAGS, are_tokens=True, form=forms.GLM),
    HERMES,
    Family(
        "granite",
        ("<|tool_call|>",),
        {"<|tool_call|>": CallSyntax(json_calls)},
        are_tokens=True,
        form=forms.GRANITE,
    ),
    Family(
        "llama4",
        ("<|header_start|>",),
        {"<|python_start|>": CallSyntax(either("<|python_end|>"), "<|python_end|>")},
        bare=_BARE,
        form=forms.BARE,
        instructions=AS_OBJECT,
        results=IN_WORDS,
    ),
    replace(
        _LLAMA_3, signs=("<|python_tag|>",), calls={"<|python_tag|>": CallSyntax(either(None))}
    ),
    _LLAMA_3,
    Family(
        "gemma3",
        ("<start_of_turn>",),
        bare={**_BARE, "`": fenced},
        form=forms.BARE,
        instructions=AS_OBJECT,
        results=IN_WORDS,
    ),
)
FAMILY_NAMES = tuple(dict.fromkeys(family.name for family in FAMILIES))


def family_of(template: str, name: str | None = None, tokens: Collection[str] = ()) -> Family:
    """Return the family that a chat template speaks for, else the one whose signs are among `tokens`, else Hermes's.

    With `name` it is the one of that name, whatever they say; of two sorts in it, the one that they speak for. Raises
    ModelLoadFailed for a name that no family has.
    """
    if name is not None and name not in FAMILY_NAMES:
        raise ModelLoadFailed(
            f"There is no family {name!r} of models. Set one of {', '.join(FAMILY_NAMES)}, or none."
        )
    some = [one for one in FAMILIES if name is None or one.name == name]
    found = next((one for one in some if all(sign in template for sign in one.signs)), None)
    if found is None and "tool_calls" not in template:
        # One that writes calls, and none of the marks, says that they are what a vocabulary was taken over with.
        found = next(
            (one for one in some if one.are_tokens and set(one.signs) <= set(tokens)), None
        )
        if found is not None and name is None and "tools" not in template:
            found = _or_hermes(found)
    if found is None:
        found = HERMES if name is None else some[-1]
    reasoning = next((pair for pair in REASONING_MARKS if pair[1] in template), None)
    return replace(found, reasoning=found.reasoning or reasoning)


def _or_hermes(family: Family) -> Family:
    """Return Hermes's family with the marks of another one, which are read, too.

    Where a template has no place for tools nobody knows whether its model has learned marks that are among its tokens:
    it is told of Hermes's, which it can write as plain text.
    """
    return replace(
        HERMES,
        name=family.name,
        calls={**HERMES.calls, **family.calls},
        silent=family.silent,
        framing=family.framing,
        behind_thoughts=family.behind_thoughts,
        ends=family.ends,
        reasoning=family.reasoning,
    )
