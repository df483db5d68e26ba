"""The grammar of calls in the form that a family writes them in, with arguments under their tools' schemas.

What such a grammar lets through, the family's parser reads as that call; a test walks through both.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlx_manager.chat.request import Tool
from mlx_manager.mlx_server.families import harmony
from mlx_manager.mlx_server.families.forms import CallForm
from mlx_manager.mlx_server.generation.argument_grammars import arguments
from mlx_manager.mlx_server.generation.grammar_rules import ANY_TEXT, Rules, Says

# Without a mark of Harmony's spelled out, which would be read as one.
UNMARKED_TEXT = (
    f"{ANY_TEXT} & ~/(?s:.*)<\\|({'|'.join(mark[2:-2] for mark in harmony.MARKS)})\\|>(?s:.*)/"
)
# What a text begins with that is certainly no call, where calls have no mark before them.
NO_CALL = r"/[^\s{\[`](?s:.*)/"


def calls(tools: Sequence[Tool], form: CallForm, says: Says, *, is_parallel: bool) -> str:
    """Return the grammar of an answer that is calls, behind `form.opening`."""
    rules = Rules(says)
    call = _any_call(rules, tools, form)
    return rules.lark(f"{call} {_more(rules, form, call, is_parallel)} {rules.text(form.last)}")


def call_of(tool: Tool, form: CallForm, says: Says) -> str:
    """Return the grammar of the one call of `tool`, behind `form.opening_of` its name."""
    rules = Rules(says)
    space = '" "? ' if form.head.endswith(" ") else ""
    body = f"{space}{arguments(rules, tool, form)} {rules.text(form.tail + form.last)}"
    return rules.lark(body)


def marked_call(tools: Sequence[Tool], form: CallForm, says: Says) -> str:
    """Return the grammar of what follows `form.begin`, up to where the answer may go on as it likes."""
    rules = Rules(says)
    call = _any_call(rules, tools, form)
    if form.between is not None and form.begin in form.between:
        return rules.lark(f"{rules.text(form.lead)} {call}")
    more = _more(rules, form, call, is_parallel=True)
    return rules.lark(f"{rules.text(form.lead)} {call} {more} {rules.text(form.last)}")


def call_or_text(tools: Sequence[Tool], form: CallForm, says: Says) -> str:
    """Return the grammar of an answer that is a call, or begins like none; for forms without a mark."""
    rules = Rules(says)
    return rules.lark(f"{_any_call(rules, tools, form)} | {rules.terminal(NO_CALL)}")


def calls_or(
    body: str, tools: Sequence[Tool], form: CallForm, says: Says, *, is_parallel: bool
) -> str:
    """Return the grammar of an answer that is calls, or says `body` and nothing else."""
    rules = Rules(says)
    said = rules.rule(body)
    if not form.begin:
        # Of JSON, piece by piece: a longer piece, read in one go, would hide what else may begin like it.
        return rules.lark(" | ".join([said, *(rules.json_call(tool) for tool in tools)]))
    call = _any_call(rules, tools, form)
    more = _more(rules, form, call, is_parallel)
    called = rules.rule(f"{rules.text(form.opening)} {call} {more} {rules.text(form.last)}")
    return rules.lark(f"{called} | {said}")


def messages(tools: Sequence[Tool], says: Says, *, must_call: bool, body: str | None = None) -> str:
    """Return the grammar of an answer in Harmony's form that ends with a call of one of `tools`, or may do so.

    An answer that doesn't says `body`, or whatever it likes.
    """
    rules = Rules(says)
    channel, end = says.mark(harmony.CHANNEL), says.mark(harmony.END)
    begin, middle = says.mark(harmony.START), says.mark(harmony.MESSAGE)
    text = rules.terminal(UNMARKED_TEXT)
    said = f'{channel} ("analysis" | "commentary") {middle} {text} {end} {begin} "assistant"'
    json_mark = says.mark(harmony.CONSTRAIN)
    some = [
        f'{channel} {rules.text(f"commentary to=functions.{tool.name} ")} {json_mark} "json" '
        f"{middle} {rules.json_arguments(tool)}"
        for tool in tools
    ]
    json_final = "" if body is None else f'(" "? {json_mark} "json")?'
    final = f'{channel} "final" {json_final} {middle} {text if body is None else rules.rule(body)}'
    last = some if must_call else [*some, final]
    return rules.lark(f"({said})* ({' | '.join(last)})")


def message_of(body: str, says: Says) -> str:
    """Return the grammar of an answer in Harmony's form that says `body` behind its thoughts."""
    channel, middle = says.mark(harmony.CHANNEL), says.mark(harmony.MESSAGE)
    end, begin = says.mark(harmony.END), says.mark(harmony.START)
    thought = f'{channel} "analysis" {middle} TEXT {end} {begin} "assistant"'
    json_mark = says.mark(harmony.CONSTRAIN)
    final = f'{channel} "final" (" "? {json_mark} "json")? {middle}'
    return f"start: ({thought})* {final} body\nbody: {body}\nTEXT: {UNMARKED_TEXT}"


def _any_call(rules: Rules, tools: Sequence[Tool], form: CallForm) -> str:
    some = [
        f"{rules.head(form, tool.name)} {arguments(rules, tool, form)} {rules.text(form.tail)}"
        for tool in tools
    ]
    return rules.rule(" | ".join(some))


def _more(rules: Rules, form: CallForm, call: str, is_parallel: bool) -> str:
    if form.between is None or not is_parallel:
        return ""
    return f"({rules.text(form.between + form.lead_again)} {call})*"
