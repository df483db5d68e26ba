"""The grammar of calls in the form that a family writes them in, with arguments under their tools' schemas.

What such a grammar lets through, the family's parser reads as that call; a test walks through both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_manager.chat.request import Tool
from mlx_manager.mlx_server.families import harmony
from mlx_manager.mlx_server.families.forms import CallForm, Keywords, Parameters, Quoted
from mlx_manager.mlx_server.families.typed import ALL_TYPES, STRING, resolved, typed, types_of

ANY_TEXT = "/(?s:.*)/"
# Without a mark of Harmony's spelled out, which would be read as one.
UNMARKED_TEXT = (
    f"{ANY_TEXT} & ~/(?s:.*)<\\|({'|'.join(mark[2:-2] for mark in harmony.MARKS)})\\|>(?s:.*)/"
)
# What can be a token of its own in the text of a form.
MARK = re.compile(r"(<[^<>\s]+>|\[[A-Z_]+\])")
BARE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
SOME_NAME = "/[A-Za-z_][A-Za-z0-9_]{0,63}/"
# What a text begins with that is certainly no call, where calls have no mark before them.
NO_CALL = r"/[^\s{\[`](?s:.*)/"
# Say nothing about which values are valid.
NOTES = frozenset(
    {"title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$id"}
)
OBJECT_WORDS = NOTES | {
    *("type", "properties", "required", "additionalProperties", "$defs", "definitions"),
}
STRING_WORDS = NOTES | {"type", "enum", "const", "pattern", "minLength", "maxLength", "$ref"}
ARRAY_WORDS = NOTES | {"type", "items", "minItems", "maxItems"}
SCALARS = frozenset({"integer", "number", "boolean", "null"})
# An automaton that counts so many letters is as much as an engine's step has time for.
LONGEST_COUNTED = 1000
ESCAPE = re.compile(r"\\.", re.DOTALL)
IN_BRACKETS = re.compile(r"\[\^?\]?[^\]]*\]")
IN_GROUP = re.compile(r"\([^()]*\)")

Mark = Callable[[str], str]
Json = Callable[[Mapping[str, Any]], str]


class Unsayable(Exception):
    """A tool's schema holds what no grammar of the family's form can say; the message names it."""


def calls(tools: Sequence[Tool], form: CallForm, says: Says, *, is_parallel: bool) -> str:
    """Return the grammar of an answer that is calls, behind `form.opening`."""
    rules = _Rules(says)
    call = _any_call(rules, tools, form)
    return rules.lark(f"{call} {_more(rules, form, call, is_parallel)} {rules.text(form.last)}")


def call_of(tool: Tool, form: CallForm, says: Says) -> str:
    """Return the grammar of the one call of `tool`, behind `form.opening_of` its name."""
    rules = _Rules(says)
    space = '" "? ' if form.head.endswith(" ") else ""
    body = f"{space}{rules.arguments(tool, form)} {rules.text(form.tail + form.last)}"
    return rules.lark(body)


def marked_call(tools: Sequence[Tool], form: CallForm, says: Says) -> str:
    """Return the grammar of what follows `form.begin`, up to where the answer may go on as it likes."""
    rules = _Rules(says)
    call = _any_call(rules, tools, form)
    if form.between is not None and form.begin in form.between:
        return rules.lark(f"{rules.text(form.lead)} {call}")
    more = _more(rules, form, call, is_parallel=True)
    return rules.lark(f"{rules.text(form.lead)} {call} {more} {rules.text(form.last)}")


def call_or_text(tools: Sequence[Tool], form: CallForm, says: Says) -> str:
    """Return the grammar of an answer that is a call, or begins like none; for forms without a mark."""
    rules = _Rules(says)
    return rules.lark(f"{_any_call(rules, tools, form)} | {rules.terminal(NO_CALL)}")


def calls_or(
    body: str, tools: Sequence[Tool], form: CallForm, says: Says, *, is_parallel: bool
) -> str:
    """Return the grammar of an answer that is calls, or says `body` and nothing else."""
    rules = _Rules(says)
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
    rules = _Rules(says)
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


@dataclass(frozen=True, slots=True)
class Says:
    """How a model's grammar says a mark (as text, or as the token that it is), and JSON of a schema."""

    mark: Mark
    json: Json


def _any_call(rules: _Rules, tools: Sequence[Tool], form: CallForm) -> str:
    some = [
        f"{rules.head(form, tool.name)} {rules.arguments(tool, form)} {rules.text(form.tail)}"
        for tool in tools
    ]
    return rules.rule(" | ".join(some))


def _more(rules: _Rules, form: CallForm, call: str, is_parallel: bool) -> str:
    if form.between is None or not is_parallel:
        return ""
    again = form.lead if form.begin and form.begin in form.between else ""
    return f"({rules.text(form.between + again)} {call})*"


@dataclass(slots=True)
class _Rules:
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

    def arguments(self, tool: Tool, form: CallForm) -> str:
        """Return the expression of a tool's arguments: of any unless they are to be held to its schema."""
        kind = form.arguments
        if isinstance(kind, Parameters):
            return _parameters(self, tool, kind)
        if isinstance(kind, Keywords):
            return _keywords(self, tool, kind)
        if isinstance(kind, Quoted):
            return _Object(self, tool.parameters, kind.quote).arguments(tool)
        return self.json_arguments(tool)

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


def _checked_words(schema: Mapping[str, Any], known: frozenset[str]) -> None:
    if unknown := sorted(set(schema) - known):
        raise Unsayable(repr(unknown[0]))


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    schema: Any
    is_required: bool


def _members(schema: Mapping[str, Any]) -> list[_Member]:
    """Return the members of an object, in their order; Unsayable when it is more than a list of them."""
    _checked_words(schema, OBJECT_WORDS)
    properties = schema.get("properties") or {}
    required = schema.get("required") or ()
    names = [*properties, *(name for name in required if name not in properties)]
    return [_Member(name, properties.get(name, {}), name in required) for name in names]


def _loose_names(tool: Tool) -> list[str]:
    """Return the names of arguments that a tool has whose schema nobody asked to keep to."""
    names = tool.parameters.get("properties") or {}
    return [name for name in names if BARE_NAME.fullmatch(name)]


def _parameters(rules: _Rules, tool: Tool, kind: Parameters) -> str:
    before, _, behind = kind.open.partition("{key}")
    if not tool.is_strict:
        value = rules.up_to(kind.close)
        names = _loose_names(tool)
        if not names:
            some = rules.rule(f"{rules.text(before)} {SOME_NAME} {rules.text(behind)} {value}")
            return f"{some}*"
        return " ".join(f"({rules.text(before + name + behind)} {value})?" for name in names)
    root, parts = tool.parameters, list[str]()
    for member in _members(root):
        _checked_name(member.name, before + behind)
        opening = rules.text(before + member.name + behind)
        value = _parameter(rules, member.schema, root, kind.close)
        parts.append(f"({opening} {value}){'' if member.is_required else '?'}")
    return " ".join(parts)


def _checked_name(name: str, around: str) -> None:
    if not name or name != name.strip() or any(mark in name for mark in ("<", ">", '"', "'", "\n")):
        raise Unsayable(f"an argument named {name!r} in {around!r}")


def _parameter(rules: _Rules, schema: Any, root: Mapping[str, Any], close: str) -> str:
    """Return the expression of a value as plain text, and of what ends it."""
    types, schema = types_of(schema, root), resolved(schema, root)
    values = _values(schema)
    if values is not None:
        _check_readable(values, types)
        written = [value if isinstance(value, str) else json.dumps(value) for value in values]
        return rules.one_of(written, "", close)
    if types == STRING:
        _checked_words(schema, STRING_WORDS)
        return rules.up_to(close, schema)
    if "string" in types:
        # Every text is of one of the types, as long as they are all that is asked for.
        _check_plain_union(schema, root)
        return rules.up_to(close)
    return f"{rules.json(schema, root)} {rules.text(close)}"


def _values(schema: Any) -> list[Any] | None:
    """Return the values that are all there are; None when a schema doesn't list them."""
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _check_readable(values: Iterable[Any], types: frozenset[str]) -> None:
    for value in values:
        text = value if isinstance(value, str) else json.dumps(value)
        if types != STRING and json.loads(typed(text.strip(), types)[0]) != value:
            raise Unsayable(f"the value {value!r} among others")


def _check_plain_union(schema: Any, root: Mapping[str, Any]) -> None:
    if schema is True or schema == {}:
        return
    if not isinstance(schema, Mapping):
        raise Unsayable("a schema of nothing")
    _checked_words(schema, NOTES | {"type", "anyOf"})
    for one in schema.get("anyOf") or ():
        one = resolved(one, root)
        if types_of(one, root) & {"array", "object"} == types_of(one, root):
            raise Unsayable("'anyOf' of strings and others")
        _check_plain_union(one, root)


def _keywords(rules: _Rules, tool: Tool, kind: Keywords) -> str:
    root = tool.parameters if tool.is_strict else {}
    if not tool.is_strict:
        names = _loose_names(tool)
        if not names:
            one = rules.rule(f'{SOME_NAME} "=" {rules.json({}, {})}')
            return f"({one} ({json.dumps(kind.between)} {one})*)?"
        members = [_Member(name, {}, False) for name in names]
    else:
        members = _members(root)
    items = list[tuple[str, bool]]()
    for member in members:
        if not BARE_NAME.fullmatch(member.name):
            raise Unsayable(f"an argument named {member.name!r}")
        value = rules.json(member.schema, root)
        items.append((f"{json.dumps(member.name + '=')} {value}", member.is_required))
    return rules.joined(items, kind.between)


class _Object:
    """Expressions of values as Gemma writes them: bare names, and strings between marks."""

    def __init__(self, rules: _Rules, root: Mapping[str, Any], quote: str) -> None:
        self._rules = rules
        self._root = root
        self._quote = quote
        self._known: dict[int, str] = {}

    def arguments(self, tool: Tool) -> str:
        """Return the expression of the arguments of a tool."""
        if tool.is_strict:
            return self._object(self._root)
        anything = self._anything()
        names = _loose_names(tool)
        if names:
            items = [(f"{json.dumps(self._bare(name) + ':')} {anything}", False) for name in names]
            return f'"{{" {self._rules.joined(items, ",")} "}}"'
        one = f'{SOME_NAME} ":" {anything}'
        return f'"{{" ({one} ("," {one})*)? "}}"'

    def _anything(self) -> str:
        rules = self._rules
        name = rules.name("any")
        scalar = rules.json({"type": sorted(SCALARS)}, {})
        text = f"{rules.text(self._quote)} {rules.up_to(self._quote)}"
        array = f'"[" ({name} ("," {name})*)? "]"'
        member = f'{SOME_NAME} ":" {name}'
        rules.define(name, f'{scalar} | {text} | {array} | "{{" ({member} ("," {member})*)? "}}"')
        return name

    def _bare(self, name: str) -> str:
        if not BARE_NAME.fullmatch(name):
            raise Unsayable(f"an argument named {name!r}")
        return name

    def _value(self, schema: Any) -> str:
        found = resolved(schema, self._root)
        if id(found) in self._known:
            return self._known[id(found)]
        if not isinstance(found, Mapping):
            raise Unsayable("a schema that is no object")
        name = self._known[id(found)] = self._rules.name("v")
        self._rules.define(name, self._body(found))
        return name

    def _body(self, schema: Mapping[str, Any]) -> str:
        types, values = types_of(schema, self._root), _values(schema)
        if values is not None:
            return self._rules.one_of(values, self._quote, self._quote)
        if isinstance(schema.get("anyOf"), list):
            _checked_words(schema, NOTES | {"anyOf"})
            return " | ".join(map(self._value, schema["anyOf"]))
        if types == STRING:
            _checked_words(schema, STRING_WORDS)
            return f"{self._rules.text(self._quote)} {self._rules.up_to(self._quote, schema)}"
        if types <= SCALARS:
            return self._rules.json(schema, self._root)
        if types == {"array"}:
            return self._array(schema)
        if types == {"object"}:
            return self._object(schema)
        if types == ALL_TYPES and set(schema) <= NOTES:
            return self._anything()
        raise Unsayable(f"values of the types {', '.join(sorted(types))}")

    def _array(self, schema: Mapping[str, Any]) -> str:
        _checked_words(schema, ARRAY_WORDS)
        item = self._value(schema.get("items", {}))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[]"'
        more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        items = f'{item} ("," {item}){more}'
        return f'"[" {items} "]"' if least else f'"[" ({items})? "]"'

    def _object(self, schema: Mapping[str, Any]) -> str:
        items = [
            (f"{json.dumps(self._bare(one.name) + ':')} {self._value(one.schema)}", one.is_required)
            for one in _members(schema)
        ]
        return f'"{{" {self._rules.joined(items, ",")} "}}"'
