"""What of a JSON schema llguidance would not keep to, or would never come to the end of, and does not refuse itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

# It reads numbers as binary ones, and some of those with more digits come out as their neighbours.
MOST_DIGITS = 15
LARGEST_EXACT = 2**53
COMPARED = ("const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# llguidance refuses deeper ones, with the place in a text that is not the client's.
MOST_LEVELS = 100
# Beyond these it isn't asked any more whether a schema can end.
MOST_VISITS = 10_000
MOST_STEPS = 150


def is_too_deep(schema: Any) -> bool:
    """Whether a schema has more levels than are read."""
    level = [schema]
    for _ in range(MOST_LEVELS):
        if not level:
            return False
        level = [inner for outer in level for inner in _parts(outer)]
    return True


def inexact_number(schema: Any) -> int | float | None:
    """Return a number of the schema that an answer would not be held to exactly; None when there is none."""
    return next((number for number in _numbers(schema) if not _is_exact(number)), None)


def can_end(schema: Mapping[str, Any]) -> bool:
    """Whether any text of the schema is finite: not when an object must hold another of its kind, without end."""
    return _Endings(schema).can_end(schema)


def _numbers(schema: Any) -> Iterator[int | float]:
    """Those that an answer is compared with."""
    if isinstance(schema, list):
        for inner in schema:
            yield from _numbers(inner)
    elif isinstance(schema, Mapping):
        for key, value in schema.items():
            yield from _all_numbers(value) if key in COMPARED else _numbers(value)


def _all_numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield value
    for inner in _parts(value):
        yield from _all_numbers(inner)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()


def _is_exact(number: int | float) -> bool:
    if isinstance(number, int):
        return abs(number) <= LARGEST_EXACT
    return len(Decimal(repr(number)).normalize().as_tuple().digits) <= MOST_DIGITS


class _Endings:
    """Follows what a schema requires. What is required of a schema within itself has no end that way."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known = set[str]()
        self._within = set[str]()
        self._visits = 0
        self._steps = 0

    def can_end(self, schema: Any) -> bool:
        self._visits += 1
        if not isinstance(schema, Mapping):
            return schema is not False
        if self._visits > MOST_VISITS or self._steps > MOST_STEPS:
            return True
        self._steps += 1
        ends = self._ends(schema)
        self._steps -= 1
        return ends

    def _ends(self, schema: Mapping[str, Any]) -> bool:
        alternatives = [schema[word] for word in ("anyOf", "oneOf") if word in schema]
        return (
            self._ref_can_end(schema.get("$ref"))
            and all(map(self.can_end, _list(schema.get("allOf"))))
            and all(any(map(self.can_end, _list(ways))) for ways in alternatives if _list(ways))
            and all(map(self.can_end, _required(schema)))
        )

    def _ref_can_end(self, ref: Any) -> bool:
        if not isinstance(ref, str) or (ref != "#" and not ref.startswith("#/")):
            return True
        if ref in self._known:
            return True
        if ref in self._within:
            return False
        self._within.add(ref)
        ends = self.can_end(_found(self._root, ref))
        self._within.discard(ref)
        if ends:
            self._known.add(ref)
        return ends


def _required(schema: Mapping[str, Any]) -> list[Any]:
    """The schemas of what each text of this one must hold."""
    if schema.get("type") in ("object", ["object"]):
        properties = schema.get("properties")
        known = properties if isinstance(properties, Mapping) else {}
        other = schema.get("additionalProperties", True)
        names = [name for name in _list(schema.get("required")) if isinstance(name, str)]
        return [known.get(name, other) for name in names]
    least = schema.get("minItems")
    if schema.get("type") in ("array", ["array"]) and isinstance(least, int):
        first = _list(schema.get("prefixItems"))[:least]
        return first + ([schema["items"]] if least > len(first) and "items" in schema else [])
    return []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _found(root: Any, ref: str) -> Any:
    """Return the part that a reference within the document points to; what isn't found says nothing."""
    found = root
    for step in unquote(ref[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(name, True)
        elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return True
    return found
