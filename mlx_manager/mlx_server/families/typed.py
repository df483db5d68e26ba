"""Values that a model writes as plain text, with the types that a tool's schema gives them."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlx_manager.mlx_server.families.syntax import dumped, loaded

ALL_TYPES = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
STRING = frozenset({"string"})
MOST_STEPS = 64
# How models write these in plain text, as their templates do.
PYTHON_WORDS = ("True", "False", "None")


def types_of(schema: Any, root: Any, steps: Iterator[int] | None = None) -> frozenset[str]:
    """Return the types that values of `schema` may have, all where it doesn't say; references are into `root`.

    Where it takes more `steps` than there are, as in a schema that refers to itself twice, it doesn't say either.
    """
    steps = steps or iter(range(MOST_STEPS))
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or next(steps, None) is None:
        return ALL_TYPES
    found = _named_types(schema)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            some = [types_of(one, root, steps) for one in schema[key]]
            found &= frozenset().union(*some)
    for one in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
        found &= types_of(one, root, steps)
    return found


def member_schema(schema: Any, key: str, root: Any) -> Any:
    """Return the schema that the member `key` of an object of `schema` is certainly held to, or None."""

    def own(schema: Mapping[str, Any]) -> Any:
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and key in properties:
            return properties[key]
        return None if schema.get("patternProperties") else schema.get("additionalProperties")

    return _inner_schema(schema, root, "object", own)


def item_schema(schema: Any, index: int, root: Any) -> Any:
    """Return the schema that the item at `index` of an array of `schema` is certainly held to, or None."""

    def own(schema: Mapping[str, Any]) -> Any:
        items = schema.get("items")
        first = items if isinstance(items, list) else schema.get("prefixItems")
        if isinstance(first, list) and index < len(first):
            return first[index]
        return items

    return _inner_schema(schema, root, "array", own)


def _inner_schema(
    schema: Any, root: Any, kind: str, own: Callable[[Mapping[str, Any]], Any]
) -> Any:
    """Return what a schema has by itself, or in the only one of its alternatives that may be of `kind`."""
    for _ in range(MOST_STEPS):
        schema = resolved(schema, root)
        if not isinstance(schema, Mapping):
            break
        if isinstance(found := own(schema), Mapping):
            return found
        lists = [schema[key] for key in ("anyOf", "oneOf", "allOf") if key in schema]
        if len(lists) != 1 or not isinstance(lists[0], list):
            break
        fitting = [one for one in lists[0] if kind in types_of(one, root)]
        if len(fitting) != 1:
            break
        schema = fitting[0]
    return None


def resolved(schema: Any, root: Any) -> Any:
    """Return what a schema refers to within `root`, or the schema itself when it refers to nothing."""
    for _ in range(MOST_STEPS):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        schema = root
        for part in reference.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(part) if isinstance(schema, Mapping) else None
    return None


def _named_types(schema: Mapping[str, Any]) -> frozenset[str]:
    found = ALL_TYPES
    named = schema.get("type")
    if isinstance(named, str) or _are_strings(named):
        names = frozenset([named] if isinstance(named, str) else named or ())
        found &= names | {"integer"} if "number" in names else names
    values = schema.get("enum")
    if "const" in schema:
        values = [schema["const"]]
    if isinstance(values, list):
        found &= frozenset().union(*map(_types, values))
    return found


def _are_strings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _types(value: Any) -> frozenset[str]:
    """Return all the types that a value is of."""
    match value:
        case None:
            return frozenset({"null"})
        case bool():
            return frozenset({"boolean"})
        case int():
            return frozenset({"integer", "number"})
        case float():
            return frozenset({"integer", "number"} if value.is_integer() else {"number"})
        case str():
            return STRING
        case Mapping():
            return frozenset({"object"})
        case Sequence():
            return frozenset({"array"})
    return frozenset()


def typed(text: str, types: frozenset[str]) -> tuple[str, bool]:
    """Return the JSON text of a value: as it stands when it is JSON of one of `types`, else as they make it certain.

    Python's way of writing it counts as well; what is of none of the types is a string where one may stand. With it
    comes whether that took a repair: one of Python's words, or a text that may be a string, is none.
    """
    if types == STRING:
        return dumped(text), False
    found, written = _read(text)
    if _types(found) & types:
        return written, text not in (written, found, *PYTHON_WORDS)
    if "string" in types:
        return dumped(text), False
    if isinstance(found, str):
        # In quotes too many.
        inner, inner_written = _read(found)
        if _types(inner) & types:
            return inner_written, True
    return written, False


def _read(text: str) -> tuple[Any, str]:
    """Return a value and its JSON text: as it stands when it is JSON, else as Python would have it, else a string."""
    try:
        return loaded(text), text
    except ValueError:
        pass
    try:
        value = ast.literal_eval(text)
        return value, dumped(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text, json.dumps(text, ensure_ascii=False)
