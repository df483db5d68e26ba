"""Which grammar an answer is held to: of its format, and of the calls whose arguments must keep to a schema.

Grammars are written in Lark's form with llguidance's additions (`%json`, tokens by number).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from mlx_manager.chat.request import AnswerFormat, ChatRequest, Conversation, Tool
from mlx_manager.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.engine.messages import Constraint
from mlx_manager.mlx_server.families.family import HERMES
from mlx_manager.mlx_server.generation.model_text import ModelText, callable_tools

# Between the tokens of JSON: enough for what models like to write, and not so much that one could go on for ever.
JSON_SPACE = r"(\n? {0,24})?"
# What a model puts between its thoughts and its answer.
LEAD = r"/\s{0,4}/"
# The engine builds a state for each remainder there is, and no limit of llguidance's counts them: for 999983 it took
# 8 s and 400 MB, in which no row got a token. 100,000 take less than a second.
MOST_REMAINDERS = 100_000
MULTIPLE_OF = re.compile(r'"multipleOf"\s*:\s*-?(\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?)')
UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
# Of a longer grammar the compiled form isn't kept: 256 of them would be gigabytes.
LONGEST_KEPT = 65_536
POSITION = re.compile(r"^at \d+\(\d+\): ")


def constraint_for(request: ChatRequest, text: ModelText, opening: str) -> Constraint | None:
    """Return what holds the answer to what was asked for; None when nothing does.

    `opening` is what the answer begins with already. Raises InvalidRequest for a format that can't be kept to and
    UnsupportedParameter where this model's can't be.
    """
    found = _constraint_for(request, text, opening)
    if found is not None:
        _check_ends(request)
    return found


def _constraint_for(request: ChatRequest, text: ModelText, opening: str) -> Constraint | None:
    tools = callable_tools(request.input) if isinstance(request.input, Conversation) else ()
    must_call = (
        isinstance(request.input, Conversation) and request.input.tool_choice.mode == "required"
    )
    if request.format is not None:
        if must_call or any(tool.is_strict for tool in tools):
            raise UnsupportedParameter(
                f"{request.format.param!r} can't be asked for together with calls that must be made or kept to a "
                "schema. Ask for one of them.",
                param=request.format.param,
            )
        return _of_format(request, request.format, text, opening)
    if tools and (must_call or any(tool.is_strict for tool in tools)):
        return _of_calls(request, tools, text, opening)
    return None


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
    request: ChatRequest, asked: AnswerFormat, text: ModelText, opening: str
) -> Constraint:
    body = _body(asked)
    if not _may_think(request, text, opening):
        return Constraint(_checked(f"start: {body}", asked.param))
    ends = _ids(text, text.family.reasoning[1] if text.family.reasoning else "")
    if len(ends) != 1:
        raise UnsupportedParameter(
            f"The thoughts of {text.model_id} can't be told from a format. Switch its reasoning off.",
            param=asked.param,
        )
    return Constraint(_checked(f"start: {LEAD} {body}", asked.param), tuple(ends))


def _may_think(request: ChatRequest, text: ModelText, opening: str) -> bool:
    """Whether the answer begins with thoughts, which no format holds for."""
    if text.family.reasoning is None or not isinstance(request.input, Conversation):
        return False
    return opening == text.family.reasoning[0] or request.input.thinking is True


def _body(asked: AnswerFormat) -> str:
    if asked.kind == "json_schema":
        assert not isinstance(asked.value, str)
        return _json(asked.value)
    assert isinstance(asked.value, str)
    if asked.kind == "regex":
        return f"/{_escaped(asked.value)}/"
    return f"%lark {{\n{asked.value}\n}}"


def _json(schema: Mapping[str, Any]) -> str:
    guided = {**schema, "x-guidance": {"whitespace_pattern": JSON_SPACE}}
    return f"%json {json.dumps(guided)}"


def _escaped(regex: str) -> str:
    """Return an expression as it may stand between slashes."""
    return re.sub(r"(\\.)|/", lambda found: found.group(1) or "\\/", regex, flags=re.DOTALL)


def _of_calls(
    request: ChatRequest, tools: Sequence[Tool], text: ModelText, opening: str
) -> Constraint | None:
    """Return the grammar of calls in Hermes's form; of other forms the beginning is all that is kept to."""
    assert isinstance(request.input, Conversation)
    choice = request.input.tool_choice
    if text.family.name != HERMES.name:
        _refuse_strict(tools, text)
        return None
    if choice.mode != "required":
        return Constraint(
            _calls(tools, text, "once"), tuple(_ids(text, "<tool_call>")), repeats=True
        )
    if choice.name is None:
        return Constraint(_calls(tools, text, "more" if choice.is_parallel else "once"))
    [tool] = [tool for tool in tools if tool.name == choice.name]
    end = _mark(text, "</tool_call>")
    return Constraint(_checked(f'start: " "? {_arguments(tool)} "}}" "\\n"? {end}', "tools"))


def _refuse_strict(tools: Sequence[Tool], text: ModelText) -> None:
    for number, tool in enumerate(tools):
        if tool.is_strict:
            raise UnsupportedParameter(
                f"{text.model_id} writes calls in a form that can't be held to a schema yet. Leave 'strict' out.",
                param=f"tools[{number}].function.strict",
            )


def _calls(tools: Sequence[Tool], text: ModelText, count: str) -> str:
    """Return the grammar of a call behind its mark; with `more`, of others behind it."""
    begin, end = _mark(text, "<tool_call>"), _mark(text, "</tool_call>")
    more = f'("\\n"? {begin} call)*' if count == "more" else ""
    rules = [f"start: call {more}", f'call: "\\n"? ({_names(tools)}) "\\n"? {end}']
    for number, tool in enumerate(tools):
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
        rules.append(f'c{number}: {head} a{number} "}}"\na{number}: {_arguments(tool)}')
    return _checked("\n".join(rules), "tools")


def _names(tools: Sequence[Tool]) -> str:
    return " | ".join(f"c{number}" for number in range(len(tools)))


def _arguments(tool: Tool) -> str:
    """Return the grammar of a tool's arguments: any object unless they are to be held to the schema."""
    if not tool.is_strict or not tool.parameters:
        return _json({"type": "object"})
    return _json({"type": "object", **tool.parameters})


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
    """Return the grammar as llguidance takes it. Raises InvalidRequest with its words where it can't be kept to."""
    _check_multiples(lark, param)
    grammar, error = _compiled(lark) if len(lark) > LONGEST_KEPT else _kept(lark)
    if error:
        raise InvalidRequest(f"{param!r} can't be kept to: {error}", param=param)
    return grammar


def _check_multiples(lark: str, param: str) -> None:
    """Refuse schemas whose `multipleOf` have too many remainders: one by one, or where several hold for one number."""
    plain = UNICODE_ESCAPE.sub(lambda found: chr(int(found[1], 16)), lark)
    found = [Decimal(number).normalize() for number in MULTIPLE_OF.findall(plain)]
    places = max(map(_places, found), default=0)
    total = sum(int(number.scaleb(_places(number))) for number in found)
    common = math.lcm(*(int(number.scaleb(places)) for number in found))
    if max(total, common) > MOST_REMAINDERS:
        raise InvalidRequest(
            f"{param!r} can't be kept to: its 'multipleOf' are too large. Counted in units of the last decimal place, "
            f"their sum and their least common multiple may be {MOST_REMAINDERS}.",
            param=param,
        )


def _places(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int), "the expression matches no infinity"
    return max(-exponent, 0)


@lru_cache(maxsize=256)
def _kept(lark: str) -> tuple[str, str]:
    return _compiled(lark)


def _compiled(lark: str) -> tuple[str, str]:
    try:
        grammar = LLMatcher.grammar_from_lark(lark)
    except UnicodeEncodeError:
        # Half a surrogate pair can be in JSON, and so in an expression.
        return "", "it is not valid Unicode"
    error = LLMatcher.validate_grammar(grammar).split("\n")[0]
    return grammar, POSITION.sub("", error)
