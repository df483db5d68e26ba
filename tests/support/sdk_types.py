"""What an answer has that the SDK's type of it doesn't name: the SDK reads that, too, and says nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel


def extras_of(value: object) -> set[str]:
    """The paths of all fields that no type of an SDK names, in a value that was read as one."""
    return set(_extras(value, ""))


def _extras(value: object, path: str) -> Iterator[str]:
    match value:
        case BaseModel():
            yield from (f"{path}{name}" for name in value.model_extra or {})
            for name in type(value).model_fields:
                yield from _extras(getattr(value, name), f"{path}{name}.")
        case Mapping():
            for name, inside in value.items():
                yield from _extras(inside, f"{path}{name}.")
        case list() | tuple():
            for inside in value:
                yield from _extras(inside, f"{path[:-1]}[].")
