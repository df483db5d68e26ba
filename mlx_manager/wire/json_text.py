"""What Python reads as JSON and can't write as such: numbers that are none, and text that is half a character."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mlx_manager.errors import InvalidRequest


def check_writable(document: Mapping[str, Any]) -> None:
    """Raise InvalidRequest, with the field, when an answer that repeats a part of `document` could not be written."""
    check_finite(document)
    for name, value in document.items():
        for leaf in _leaves(value):
            if isinstance(leaf, str) and not _is_unicode(leaf):
                raise InvalidRequest(f"{name!r} has half of a surrogate pair.", param=name)


def check_finite(document: Mapping[str, Any]) -> None:
    """Raise InvalidRequest, with the field, for a number in `document` that JSON doesn't know."""
    for name, value in document.items():
        for leaf in _leaves(value):
            if isinstance(leaf, float) and not math.isfinite(leaf):
                raise InvalidRequest(f"{name!r} has a number that JSON doesn't know.", param=name)


def _leaves(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            waiting.extend((*found.keys(), *found.values()))
        elif isinstance(found, list):
            waiting.extend(found)
        else:
            yield found


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
