"""Which grammar an answer is held to: of its format, and of the calls whose arguments must keep to a schema.

Grammars are written in Lark's form with llguidance's additions (`%json`, tokens by number). The engine compiles them,
beside its work, and refuses what can't be kept to.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from msgspec.structs import replace

from mlx_manager.chat.request import AnswerFormat, ChatRequest, Conversation, Tool, ToolChoice
from mlx_manager.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.engine.messages import Constraint
from mlx_manager.mlx_server.families import harmony
from mlx_manager.mlx_server.families.forms import CallForm
from mlx_manager.mlx_server.generation import call_grammars
from mlx_manager.mlx_server.generation.gbnf import in_lark
from mlx_manager.mlx_server.generation.grammar_rules import Says, Unsayable, slashed
from mlx_manager.mlx_server.generation.model_text import ModelText, callable_tools
from mlx_manager.mlx_server.generation.outlines import outlined
from mlx_manager.mlx_server.generation.refusals import of_both, of_tool
from mlx_manager.mlx_server.generation.schema_limits import (
    MOST_LEVELS,
    can_end,
    inexact_number,
    is_too_deep,
)

# Between the tokens of JSON: enough for what models like to write, and not so much that one could go on for ever.
JSON_SPACE = r"(\n? {0,24})?"
# What a model puts between its thoughts and its answer.
LEAD = r"/\s{0,4}/"
# llguidance builds a state for each remainder, and in a range one for each remainder and digit; no limit of its
# counts them: for 999983 it took 8 s and 400 MB, for 99999 in a range 6 s. These take less than half a second.
MOST_REMAINDERS = 10_000
MOST_REMAINDERS_IN_RANGE = 2_000
BOUND = re.compile(r'"(?:exclusiveM|m)(?:in|ax)imum"\s*:\s*-?\d')
MULTIPLE_OF = re.compile(r'"multipleOf"\s*:\s*-?(\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?)')
LONGEST_GRAMMAR_BYTES = 262_144
LONGEST_OUTLINES = 65_536
UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


def constraint_for(request: ChatRequest, text: ModelText, opening: str) -> Constraint | None:
    """Return what holds the answer to what was asked for; None when nothing does.

    `opening` is what the answer begins with already. Raises InvalidRequest for a format that would be too much work
    and UnsupportedParameter where this model's can't be kept to.
    """
    if not isinstance(request.input, Conversation):
        tools, must_call, is_some = tuple[Tool, ...](), False, False
    else:
        choice = request.input.tool_choice
        tools = tuple(filter(choice.allows, callable_tools(request.input)))
        must_call, is_some = choice.mode == "required", choice.allowed is not None
    is_held = must_call or is_some or any(one.is_strict for one in tools)
    if tools and is_held and (must_call or request.format is None):
        # Of an answer that is calls a format has nothing to say.
        found, param = _of_calls(request, tools, text, opening), "tools"
    elif request.format is not None:
        found = _of_format(request, request.format, tools, text, opening)
        param = request.format.param
    else:
        return None
    _check_ends(request)
    return replace(found, param=param)


def _check_ends(request: ChatRequest) -> None:
    """Refuse what would let an answer go on when its format is complete."""
    for name, value in (
        ("ignore_eos", request.sampling.ignore_end),
        ("min_tokens", request.sampling.min_tokens),
    ):
        if value:
            raise UnsupportedParameter(
                f"An answer that is held to a format or a schema ends when it is complete. Leave {name!r} out.",
                param=name,
            )


def _of_format(
    request: ChatRequest, asked: AnswerFormat, tools: Sequence[Tool], text: ModelText, opening: str
) -> Constraint:
    """Return what holds an answer to its format, or to calls where the model may choose to make some."""
    lark = _said_or_called(request, asked, tools, text)
    _check_parts(lark, asked, tools, text)
    if text.family.in_messages or not _may_think(request, text, opening):
        return Constraint(lark)
    ends = _ids(text, text.family.reasoning[1] if text.family.reasoning else "")
    if len(ends) != 1:
        raise UnsupportedParameter(
            f"The thoughts of {text.model_id} can't be told from a format. Switch its reasoning off.",
            param=asked.param,
        )
    return Constraint(_behind_space(lark), tuple(ends))


def _check_parts(lark: str, asked: AnswerFormat, tools: Sequence[Tool], text: ModelText) -> None:
    """Raise InvalidRequest where a grammar is too much, about the tool, the format or the two that make it so."""
    if (why := _too_much(lark)) is None:
        return
    says = Says(partial(_mark, text), partial(_json, param="tools"))
    strict = [one for one in tools if one.is_strict]
    for tool in strict:
        alone = _forced([tool], ToolChoice("required", tool.name), text, says)
        if (reason := _too_much(alone)) is not None:
            raise of_tool(tool, reason)
    if not strict or _too_much(_body(asked)) is not None:
        raise InvalidRequest(f"{asked.param!r} can't be kept to: {why}.", param=asked.param)
    raise of_both(asked.param, strict, why)


def _said_or_called(
    request: ChatRequest, asked: AnswerFormat, tools: Sequence[Tool], text: ModelText
) -> str:
    """Return the grammar of an answer of the format asked for; of one or some calls, too, where there are tools."""
    body = _body(asked)
    says = Says(partial(_mark, text), partial(_json, param="tools"))
    if not tools:
        in_messages = text.family.in_messages
        return call_grammars.message_of(body, says) if in_messages else f"start: {body}"
    assert isinstance(request.input, Conversation)
    _check_sayable(request.input, text, says)
    if text.family.in_messages:
        return call_grammars.messages(tools, says, must_call=False, body=body)
    if text.family.form is None:
        raise UnsupportedParameter(
            f"{text.model_id} writes calls in a form that can't be told from a format yet. Leave out one of 'tools' "
            f"and {asked.param!r}, or send 'tool_choice' \"none\".",
            param=asked.param,
        )
    is_parallel = request.input.tool_choice.is_parallel
    return call_grammars.calls_or(body, tools, text.family.form, says, is_parallel=is_parallel)


def _behind_space(lark: str) -> str:
    """Return a grammar with what a model puts between its thoughts and its answer before it."""
    return lark.replace("start: ", f"start: {LEAD} answer\nanswer: ", 1)


def _may_think(request: ChatRequest, text: ModelText, opening: str) -> bool:
    """Whether the answer begins with thoughts, which no format holds for."""
    if text.family.reasoning is None or not isinstance(request.input, Conversation):
        return False
    return opening == text.family.reasoning[0] or request.input.thinking is True


def _body(asked: AnswerFormat) -> str:
    if asked.kind == "json_schema":
        assert not isinstance(asked.value, str)
        return _json(asked.value, asked.param)
    assert isinstance(asked.value, str)
    if asked.kind == "regex":
        return f"/{slashed(asked.value)}/"
    return f"%lark {{\n{in_lark(asked.value, asked.param)}\n}}"


def _json(schema: Mapping[str, Any], param: str) -> str:
    if (reason := _unkept(schema)) is not None:
        raise InvalidRequest(f"{param!r} can't be kept to: {reason}.", param=param)
    guided = {**schema, "x-guidance": {"whitespace_pattern": JSON_SPACE}}
    return f"%json {json.dumps(guided)}"


def _unkept(schema: Mapping[str, Any]) -> str | None:
    """Why a schema can't be kept to, where llguidance wouldn't say so."""
    if is_too_deep(schema):
        return f"it has more than {MOST_LEVELS} levels"
    if not can_end(schema):
        return "it refers to itself so that no text of it would ever end"
    if (number := inexact_number(schema)) is not None:
        return f"{number} has more digits than numbers are computed with"
    return None


def _of_calls(
    request: ChatRequest, tools: Sequence[Tool], text: ModelText, opening: str
) -> Constraint:
    """Return what holds the answer to calls in the form of the model's family."""
    assert isinstance(request.input, Conversation)
    choice = request.input.tool_choice
    says = Says(partial(_mark, text), partial(_json, param="tools"))
    _check_sayable(request.input, text, says)
    if choice.name is not None:
        tools = [tool for tool in tools if tool.name == choice.name]
    if choice.mode == "required":
        return Constraint(_of_forced_calls(choice, tools, text, says))
    if text.family.in_messages:
        lark = call_grammars.messages(tools, says, must_call=False)
        return Constraint(_checked(lark, "tools"))
    assert text.family.form is not None, "or else it would have been refused"
    return _of_free_calls(request, text.family.form, tools, text, opening)


def _of_forced_calls(choice: ToolChoice, tools: Sequence[Tool], text: ModelText, says: Says) -> str:
    """Return the grammar of calls, those of tools that aren't strict under the outlines of their schemas."""
    held = [_outlined(tool, text, says) for tool in tools]
    lark = _forced(held, choice, text, says)
    if len(lark) > LONGEST_OUTLINES and held != [*tools]:
        # Nobody asked for more than a call, and that must not fail by what is added to it.
        lark = _forced(tools, choice, text, says)
    return _checked(lark, "tools")


def _forced(tools: Sequence[Tool], choice: ToolChoice, text: ModelText, says: Says) -> str:
    if text.family.in_messages:
        return call_grammars.messages(tools, says, must_call=True)
    form = text.family.form
    assert form is not None, "or else it would have been refused"
    if choice.name is not None:
        return call_grammars.call_of(tools[0], form, says)
    return call_grammars.calls(tools, form, says, is_parallel=choice.is_parallel)


def _outlined(tool: Tool, text: ModelText, says: Says) -> Tool:
    """Return a tool whose calls are held to the outline of its schema, where the family's form can say that."""
    held = None if tool.is_strict else outlined(tool)
    if held is None or text.family.form is None:
        return held or tool
    try:
        call_grammars.call_of(held, text.family.form, says)
    except (Unsayable, InvalidRequest):
        return tool
    return held


def _of_free_calls(
    request: ChatRequest, form: CallForm, tools: Sequence[Tool], text: ModelText, opening: str
) -> Constraint:
    """Return what holds for the calls of an answer, and for nothing else in it."""
    says = Says(partial(_mark, text), partial(_json, param="tools"))
    if form.begin:
        lark = _checked(call_grammars.marked_call(tools, form, says), "tools")
        return Constraint(lark, tuple(_ids(text, form.begin)), repeats=True)
    body = call_grammars.call_or_text(tools, form, says)
    if not _may_think(request, text, opening):
        return Constraint(_checked(body, "tools"))
    assert text.family.reasoning is not None
    thought_ends = tuple(_ids(text, text.family.reasoning[1]))
    return Constraint(_checked(_behind_space(body), "tools"), thought_ends)


def _check_sayable(conversation: Conversation, text: ModelText, says: Says) -> None:
    """Raise UnsupportedParameter where strict tools, or some of all, are more than a grammar of calls can say."""
    choice = conversation.tool_choice
    is_free = choice.mode == "auto" and choice.allowed is not None
    if is_free and (reason := _unmarked(text)) is not None:
        raise UnsupportedParameter(
            f"{text.model_id} writes calls in a form that {reason}. Send only the tools that it may call.",
            param="tool_choice",
        )
    for number, tool in enumerate(conversation.tools):
        if not (tool.is_strict and choice.allows(tool)):
            continue
        try:
            reason = _unsayable(tool, text, says)
        except Unsayable as error:
            reason = f"can't be held to {error}"
        if reason is not None:
            raise UnsupportedParameter(
                f"{text.model_id} writes calls in a form that {reason}. Leave 'strict' out.",
                param=f"tools[{number}].function.strict",
            )


def _unsayable(tool: Tool, text: ModelText, says: Says) -> str | None:
    """Return why a strict call can't be said; None when it can. Raises Unsayable."""
    if (reason := _unmarked(text)) is not None:
        return reason
    if text.family.form is not None:
        call_grammars.call_of(tool, text.family.form, says)
    return None


def _unmarked(text: ModelText) -> str | None:
    """Return why calls can't be told from text before they are written; None when they can."""
    family = text.family
    if family.in_messages:
        is_marked = all(len(_ids(text, mark)) == 1 for mark in harmony.MARKS)
        return None if is_marked else "is not of tokens of its own"
    if family.form is None:
        return "can't be held to a schema yet"
    if family.form.begin and len(_ids(text, family.form.begin)) != 1:
        return "does not begin with a token of its own"
    return None


def _mark(text: ModelText, mark: str) -> str:
    """Return a mark as a grammar names it: one that is a token goes by its number.

    As text it can't be drawn: llguidance takes such a token for a special one, whatever the tokenizer says, which is no
    text of any grammar; and yet it is the only one that it allows there.
    """
    ids = _ids(text, mark)
    return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(mark)


def _ids(text: ModelText, mark: str) -> list[int]:
    ids: list[int] = text.tokenizer.backend_tokenizer.encode(mark, add_special_tokens=False).ids
    return ids


def _checked(lark: str, param: str) -> str:
    """Return the grammar. Raises InvalidRequest where it would take too long to compile, or isn't text."""
    if (why := _too_much(lark)) is not None:
        raise InvalidRequest(f"{param!r} can't be kept to: {why}.", param=param)
    return lark


def _too_much(lark: str) -> str | None:
    """Return why a grammar would take too long to compile, or isn't text; None where neither is so."""
    try:
        size = len(lark.encode())
    except UnicodeEncodeError:
        # Half a surrogate pair can be in JSON, and so in an expression.
        return "it is not valid Unicode"
    if size > LONGEST_GRAMMAR_BYTES:
        return f"it has {size} bytes, and at most {LONGEST_GRAMMAR_BYTES} are compiled"
    return _too_many_remainders(lark)


def _too_many_remainders(lark: str) -> str | None:
    """Return why `multipleOf` have too many remainders: one by one, or where several hold for one number."""
    plain = UNICODE_ESCAPE.sub(lambda found: chr(int(found[1], 16)), lark)
    found = [Decimal(number).normalize() for number in MULTIPLE_OF.findall(plain)]
    places = max(map(_places, found), default=0)
    total = sum(int(number.scaleb(_places(number))) for number in found)
    common = math.lcm(*(int(number.scaleb(places)) for number in found))
    most = MOST_REMAINDERS_IN_RANGE if BOUND.search(plain) else MOST_REMAINDERS
    if max(total, common) <= most:
        return None
    return (
        "its 'multipleOf' are too large. Counted in units of the last decimal place, their sum and their least common "
        f"multiple may be {MOST_REMAINDERS}, and {MOST_REMAINDERS_IN_RANGE} in a schema with a least or a greatest "
        "number"
    )


def _places(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int), "the expression matches no infinity"
    return max(-exponent, 0)
