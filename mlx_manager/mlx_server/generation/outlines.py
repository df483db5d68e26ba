"""The outline of a schema: the types, members and values that it names, which a grammar can say whatever else is in it.

Every value of a schema is of its outline, so that who is held to the outline is kept from nothing that is valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlx_manager.chat.request import Tool
from mlx_manager.mlx_server.families.typed import ALL_TYPES, resolved
from mlx_manager.mlx_server.generation.schema_limits import (
    LARGEST_EXACT,
    can_end,
    inexact_number,
    is_too_deep,
)

DEFINITIONS = ("$defs", "definitions")
# What stands otherwise in a reference.
NOT_PLAIN = re.compile(r"[~/%]")
# Half of what was found to compile, also in the forms of families that make the longest grammars.
MOST_OPTIONAL = 200
MOST_ALTERNATIVES = 50
NUMBERS = frozenset({"integer", "number"})


def outlined(tool: Tool) -> Tool | None:
    """Return a tool that is strict about no more than the outline of its schema; None where that says nothing."""
    schema = tool.parameters
    if is_too_deep(schema):
        return None
    root = resolved(schema, schema)
    found = outline({**_definitions(schema), **root, "type": "object"}) if root else {}
    says_nothing = set(found) <= {"type", *DEFINITIONS}
    if found.get("type") != "object" or says_nothing or _is_too_much(found) or not can_end(found):
        return None
    return replace(tool, parameters=found, is_strict=True)


def outline(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outline of a schema, with references to its definitions; empty where that says nothing."""
    defined = _definitions(schema)
    known = {
        f"#/{word}/{name}"
        for word, some in defined.items()
        for name in some
        if not NOT_PLAIN.search(name)
    }
    if not (found := _of(schema, known)):
        return {}
    named = {
        word: {name: _of(one, known) for name, one in some.items()}
        for word, some in defined.items()
    }
    return found | _without_circles(named)


def _definitions(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {word: schema[word] for word in DEFINITIONS if isinstance(schema.get(word), Mapping)}


def _without_circles(named: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return definitions without what those say that are nothing but each other."""
    flat = {f"#/{word}/{name}": one for word, some in named.items() for name, one in some.items()}
    grounded = set[str]()

    def is_grounded(one: Mapping[str, Any]) -> bool:
        if "$ref" in one:
            return one["$ref"] in grounded
        return all(map(is_grounded, one.get("anyOf", ())))

    while more := {ref for ref, one in flat.items() if ref not in grounded and is_grounded(one)}:
        grounded |= more
    return {
        word: {name: one if f"#/{word}/{name}" in grounded else {} for name, one in some.items()}
        for word, some in named.items()
    }


def _of(schema: Any, known: set[str]) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        return {}
    if "$ref" in schema:
        return {"$ref": schema["$ref"]} if schema["$ref"] in known else {}
    if (values := _values(schema)) is not None:
        return {"enum": values} if values and inexact_number({"enum": values}) is None else {}
    if "type" not in schema:
        return _of_alternatives(schema, known)
    return _of_types(schema, known)


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    """Return all values there are, where a schema lists them."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _of_alternatives(schema: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Return the outline of a schema that is one of some others; of several conditions none is certain."""
    for word in ("anyOf", "oneOf", "allOf"):
        some = schema.get(word)
        if isinstance(some, list) and (word != "allOf" or len(some) == 1):
            found = [_of(one, known) for one in some if one is not False]
            return {"anyOf": found} if found and all(found) else {}
    return {}


def _of_types(schema: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    named = schema["type"]
    types = [named] if isinstance(named, str) else named
    if not (isinstance(types, list) and types and all(one in ALL_TYPES for one in types)):
        return {}
    found: dict[str, Any] = {"type": named}
    if "object" in types:
        found |= _of_members(schema, known)
    if "array" in types and "prefixItems" not in schema and (of := _of(schema.get("items"), known)):
        found["items"] = of
    if NUMBERS.issuperset(types):
        found |= _bounds(schema)
    return found


def _of_members(schema: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    properties, required = schema.get("properties"), schema.get("required")
    found: dict[str, Any] = {}
    if isinstance(properties, Mapping):
        found["properties"] = {name: _of(one, known) for name, one in properties.items()}
    names = found.get("properties", {})
    if isinstance(required, list) and all(isinstance(name, str) for name in required):
        found["required"] = required
    is_closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    if is_closed and all(name in names for name in found.get("required", ())):
        found["additionalProperties"] = False
    return found


def _bounds(schema: Mapping[str, Any]) -> dict[str, int]:
    """Return the bounds that are plain whole numbers, and leave room between them."""
    found = {word: schema[word] for word in ("minimum", "maximum") if _is_plain(schema.get(word))}
    if found.get("minimum", -LARGEST_EXACT) > found.get("maximum", LARGEST_EXACT):
        return {}
    return found


def _is_plain(number: Any) -> bool:
    return type(number) is int and abs(number) <= LARGEST_EXACT


def _is_too_much(found: Mapping[str, Any]) -> bool:
    """Whether an outline leaves so much open that its grammar might be too complex."""
    optional = alternatives = 0
    waiting: list[Any] = [found]
    while waiting:
        one = waiting.pop()
        properties, some = one.get("properties", {}), one.get("anyOf", [])
        optional += sum(name not in one.get("required", ()) for name in properties)
        alternatives += len(some)
        waiting += [*properties.values(), *some, *([one["items"]] if "items" in one else [])]
        waiting += [inner for word in DEFINITIONS for inner in one.get(word, {}).values()]
    return optional > MOST_OPTIONAL or alternatives > MOST_ALTERNATIVES
