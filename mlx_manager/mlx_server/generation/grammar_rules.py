"""Rules of a grammar, in llguidance's Lark: texts with marks, JSON under a schema, and what is read up to a mark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_manager.chat.request import Tool
from mlx_manager.mlx_server.families.forms import CallForm

ANY_TEXT = "/(?s:.*)/"
# What can be a token of its own in the text of a form.
MARK = re.compile(r"(<[^<>\s]+>|\[[A-Z_]+\])")
# An automaton that counts so many letters is as much as an engine's step has time for.
LONGEST_COUNTED = 1000
ESCAPE = re.compile(r"\\.", re.DOTALL)
IN_BRACKETS = re.compile(r"\[\^?\]?[^\]]*\]")
IN_GROUP = re.compile(r"\([^()]*\)")

Mark = Callable[[str], str]
Json = Callable[[Mapping[str, Any]], str]


class Unsayable(Exception):
    """A tool's schema holds what no grammar of the family's form can say; the message names it."""


@dataclass(frozen=True, slots=True)
class Says:
    """How a model's grammar says a mark (as text, or as the token that it is), and JSON of a schema."""

    mark: Mark
    json: Json


@dataclass(slots=True)
class Rules:
    """Writes rules down, and gives them names."""

    says: Says
    _lines: list[str] = field(default_factory=list)
    _names: int = 0

    def lark(self, start: str) -> str:
        """Return the whole grammar."""
        return "\n".join([f"start: {start}", *self._lines])

    def name(self, letter: str) -> str:
        """Return a name that no rule has."""
        self._names += 1
        return f"{letter}{self._names}"

    def define(self, name: str, body: str) -> None:
        """Write down what a rule of this name is."""
        self._lines.append(f"{name}: {body}")

    def rule(self, body: str, attribute: str = "") -> str:
        """Write a rule down and return its name."""
        name = self.name("r")
        self.define(name + attribute, body)
        return name

    def terminal(self, body: str) -> str:
        """Write down what is read in one go, and return its name."""
        name = self.name("T")
        self.define(name, body)
        return name

    def text(self, text: str) -> str:
        """Return the expression of a text, in which marks may be tokens."""
        parts = [part for part in MARK.split(text) if part]
        return " ".join(
            self.says.mark(part) if MARK.fullmatch(part) else json.dumps(part) for part in parts
        )

    def head(self, form: CallForm, name: str) -> str:
        """Return the expression of what a call of the tool named begins with."""
        before, number, behind = form.head.partition("{number}")
        if not number:
            return self.text(form.head_of(name))
        before = before.replace("{name}", name)
        return f"{self.text(before)} /[0-9]{{1,2}}/ {self.text(behind)}"

    def json_arguments(self, tool: Tool) -> str:
        """Return the expression of arguments as a JSON object."""
        schema = tool.parameters if tool.is_strict else {}
        return self.rule(self.says.json({"type": "object", **schema}))

    def json_call(self, tool: Tool) -> str:
        """Return the expression of a call that is a JSON object with its arguments as `parameters`."""
        own = tool.parameters if tool.is_strict else {}
        members = {"name": {"const": tool.name}, "parameters": _moved({"type": "object", **own})}
        call = {"type": "object", "properties": members, "required": [*members]}
        return self.rule(self.says.json({**call, "additionalProperties": False}))

    def json(self, schema: Any, root: Mapping[str, Any]) -> str:
        """Return the expression of a value of `schema`, which may refer to definitions of `root`."""
        defined = {key: root[key] for key in ("$defs", "definitions") if key in root}
        if isinstance(schema, bool):
            schema = {} if schema else {"not": {}}
        return self.rule(self.says.json({**defined, **schema}))

    def up_to(self, close: str, schema: Mapping[str, Any] | None = None) -> str:
        """Return the expression of a text that `close` ends, of the string that `schema` describes."""
        body = " & ".join([ANY_TEXT, *_conditions(schema or {}), f"~{_holding(close.strip())}"])
        if self.says.mark(close.strip()).startswith("<["):
            return f"{self.terminal(body)} {self.text(close)}"
        return self.rule(self.terminal(f"({body}) {json.dumps(close)}"), "[lazy]")

    def one_of(self, values: Iterable[Any], open_: str, close: str) -> str:
        """Return the expression of the strings among `values`, between two marks, and of the others as JSON."""
        return self.rule(
            " | ".join(
                self.text(f"{open_}{_plain(value, close)}{close}")
                if isinstance(value, str)
                else json.dumps(json.dumps(value))
                for value in values
            )
        )

    def joined(self, items: Sequence[tuple[str, bool]], between: str) -> str:
        """Return the expression of `items` in their order, with `between` from one to the next.

        Each comes with whether it must be there.
        """
        first, later = '""', '""'
        for item, is_required in reversed(items):
            more = self.rule(f"{json.dumps(between)} {item} {later}")
            begun = f"{item} {later}"
            first = self.rule(begun if is_required else f"{begun} | {first}")
            later = more if is_required else self.rule(f"{more} | {later}")
        return first


def _moved(schema: Any) -> Any:
    """Return the schema of arguments with its references to itself as they are within the schema of a call."""
    if isinstance(schema, list):
        return [_moved(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: f"#/properties/parameters{value[1:]}"
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value)
        for key, value in schema.items()
    }


def _conditions(schema: Mapping[str, Any]) -> list[str]:
    """Return what a text must match as well, for what its schema says of it."""
    found = list[str]()
    if "pattern" in schema:
        found.append(_found(schema["pattern"]))
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if max(least, most or 0) > LONGEST_COUNTED:
        raise Unsayable(f"lengths of more than {LONGEST_COUNTED} characters")
    if least or most is not None:
        found.append(f"/(?s:.{{{least},{'' if most is None else most}}})/")
    if found:
        # The form's own line breaks are taken off around a value.
        found.append(r"~/\n(?s:.*)/ & ~/(?s:.*)\n/")
    return found


def _holding(mark: str) -> str:
    return f"/(?s:.*){re.sub(r'([^A-Za-z0-9_<>=｜▁])', lambda one: chr(92) + one[1], mark)}(?s:.*)/"


def _found(pattern: str) -> str:
    """Return the expression of texts in which `pattern` is found; anchors stand at its ends only."""
    is_first, is_last = pattern.startswith("^"), bool(re.search(r"(?<!\\)(\\\\)*\$$", pattern))
    body = pattern[is_first : len(pattern) - is_last]
    plain = IN_BRACKETS.sub("", ESCAPE.sub("", body))
    if "^" in plain or "$" in plain or ((is_first or is_last) and "|" in _outside(plain)):
        raise Unsayable(f"the pattern {pattern!r}")
    before, behind = "" if is_first else "(?s:.*)", "" if is_last else "(?s:.*)"
    return f"/{before}({slashed(body)}){behind}/"


def _outside(plain: str) -> str:
    """Return what of an expression stands in no group."""
    while (less := IN_GROUP.sub("", plain)) != plain:
        plain = less
    return plain


def slashed(regex: str) -> str:
    """Return an expression as it may stand between slashes."""
    return re.sub(r"(\\.)|/", lambda found: found.group(1) or "\\/", regex, flags=re.DOTALL)


def _plain(value: str, close: str) -> str:
    if close.strip() in value or value != value.strip("\n"):
        raise Unsayable(f"the value {value!r}")
    return value
