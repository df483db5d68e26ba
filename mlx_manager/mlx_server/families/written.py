"""Calls as a model of a family would have written them, which its parser reads as the same calls again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlx_manager.chat.request import ToolCall
from mlx_manager.mlx_server.families.forms import CallForm, Keywords, Parameters, Quoted

# What Gemma's parser reads without quotes.
BARE_NAME = re.compile(r"[^\s:,{}\[\]<\"']{1,256}")
PYTHON_LITERALS = {None: "None", True: "True", False: "False"}


def written(calls: Sequence[ToolCall], form: CallForm, earlier: int = 0) -> str:
    """Return the text of an answer that is these calls, one at least, behind `earlier` ones of the conversation."""
    form = _with_room_for(calls, form)
    # A form for one call only has a parser that reads several lines of it.
    between = "\n" if form.between is None else form.between + form.lead_again
    texts = [
        form.head_of(call.name, earlier + at, at + 1) + _arguments(call.arguments, form) + form.tail
        for at, call in enumerate(calls)
    ]
    return form.opening + between.join(texts) + form.last


def _with_room_for(calls: Sequence[ToolCall], form: CallForm) -> CallForm:
    """Return a form that can say the names of all arguments: as keywords not all can be written, as JSON all."""
    names = (name for call in calls for name in call.arguments)
    if not isinstance(form.arguments, Keywords) or all(map(str.isidentifier, names)):
        return form
    return replace(form, head='{"name": {json}, "arguments": ', arguments="json", tail="}")


def _arguments(arguments: Mapping[str, Any], form: CallForm) -> str:
    match form.arguments:
        case Parameters() as kind:
            return "".join(_parameter(kind, name, value) for name, value in arguments.items())
        case Keywords(between):
            return between.join(f"{name}={_python(value)}" for name, value in arguments.items())
        case Quoted(quote):
            return _quoted(dict(arguments), quote)
    return _json(dict(arguments))


def _parameter(kind: Parameters, name: str, value: Any) -> str:
    is_string = isinstance(value, str)
    opening = (
        kind.open.replace("{is_string}", "true" if is_string else "false")
        .replace("{type}", _type(value))
        .replace("{escaped_key}", name.replace("&", "&amp;").replace('"', "&quot;"))
        .replace("{key}", name)
    )
    return f"{opening}{value if is_string else _json(value)}{kind.close}"


def _type(value: Any) -> str:
    """Return the JSON type of a value; that of all numbers is one."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case Mapping():
            return "object"
        case list():
            return "array"
    return "number"


def _python(value: Any) -> str:
    match value:
        case None | bool():
            return PYTHON_LITERALS[value]
        case Mapping():
            members = (f"{_json(name)}: {_python(item)}" for name, item in value.items())
            return f"{{{', '.join(members)}}}"
        case list():
            return f"[{', '.join(map(_python, value))}]"
    return _json(value)


def _quoted(value: Any, quote: str) -> str:
    match value:
        case Mapping():
            members = (f"{_bare(name)}:{_quoted(item, quote)}" for name, item in value.items())
            return f"{{{','.join(members)}}}"
        case list():
            return f"[{','.join(_quoted(item, quote) for item in value)}]"
        # A string that holds the mark around strings would end at it.
        case str() if quote not in value:
            return f"{quote}{value}{quote}"
    return _json(value)


def _bare(name: str) -> str:
    return name if BARE_NAME.fullmatch(name) else _json(name)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
