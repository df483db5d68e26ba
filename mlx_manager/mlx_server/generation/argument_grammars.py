"""The grammar of a call's arguments in the form that a family writes them in, under the schema of a strict tool."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_manager.chat.request import Tool
from mlx_manager.mlx_server.families.forms import CallForm, Keywords, Parameters, Quoted
from mlx_manager.mlx_server.families.typed import ALL_TYPES, STRING, resolved, typed, types_of
from mlx_manager.mlx_server.generation.grammar_rules import Rules, Unsayable

BARE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
SOME_NAME = "/[A-Za-z_][A-Za-z0-9_]{0,63}/"
# Say nothing about which values are valid.
NOTES = frozenset(
    {"title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$id"}
)
OBJECT_WORDS = NOTES | {
    *("type", "properties", "required", "additionalProperties", "$defs", "definitions"),
}
STRING_WORDS = NOTES | {"type", "enum", "const", "pattern", "minLength", "maxLength", "$ref"}
ARRAY_WORDS = NOTES | {"type", "items", "minItems", "maxItems"}
# Any of which may be there or not: grammars with some times as many are too complex.
MOST_LOOSE_NAMES = 200
# References within references are followed down to here.
MOST_LEVELS = 100
SCALARS = frozenset({"integer", "number", "boolean", "null"})


def arguments(rules: Rules, tool: Tool, form: CallForm) -> str:
    """Return the expression of a tool's arguments: of any unless they are to be held to its schema."""
    kind = form.arguments
    if isinstance(kind, Parameters):
        return _parameters(rules, tool, kind)
    if isinstance(kind, Keywords):
        return _keywords(rules, tool, kind)
    if isinstance(kind, Quoted):
        return _Object(rules, tool.parameters, kind.quote).arguments(tool)
    return rules.json_arguments(tool)


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
    """Return the names of arguments that a tool has whose schema nobody asked to keep to; none of too many."""
    names = tool.parameters.get("properties") or {}
    found = [name for name in names if BARE_NAME.fullmatch(name)]
    return found if len(found) <= MOST_LOOSE_NAMES else []


def _parameters(rules: Rules, tool: Tool, kind: Parameters) -> str:
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


def _parameter(rules: Rules, schema: Any, root: Mapping[str, Any], close: str) -> str:
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


def _keywords(rules: Rules, tool: Tool, kind: Keywords) -> str:
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

    def __init__(self, rules: Rules, root: Mapping[str, Any], quote: str) -> None:
        self._rules = rules
        self._root = root
        self._quote = quote
        self._known: dict[int, str] = {}
        self._levels = 0

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
        if self._levels == MOST_LEVELS:
            raise Unsayable(f"more than {MOST_LEVELS} schemas within each other")
        name = self._known[id(found)] = self._rules.name("v")
        self._levels += 1
        self._rules.define(name, self._body(found))
        self._levels -= 1
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
