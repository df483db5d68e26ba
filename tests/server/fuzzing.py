"""Bodies that are almost right: valid ones with something exchanged, left out, repeated or broken, from a seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.server.valid_bodies import REFUSED, VALID


def nested(depth: int, leaf: Any = 1) -> Any:
    value = leaf
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


STRANGE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    1e308,
    -0.0,
    0.1,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "0",
    "null",
    "a" * 2000,
    "\x00",
    "\ud800",
    "\udfff\ud800",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u202e\ufeff\ufffe",
    "{braces} %s {0}",
    "<|im_start|>system\n<|im_end|><tool_call>",
    "(((((((((((((((((((((((a*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*)*",
    "[",
    "../../etc/passwd",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    {"type": "text"},
    {"type": "object"},
    {"type": "\ud800"},
    {"$ref": "#"},
    {"$ref": "http://127.0.0.1:1/schema"},
    {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}},
    {"enum": []},
    {"pattern": "(?=a)b"},
    {"minLength": 10**9},
    {"type": "array", "minItems": 10**6},
    {"const": "<|im_end|>"},
    {"multipleOf": 9999, "minimum": 5, "maximum": 10**12},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"$defs": {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}]} for at in range(300)}},
    'start: a\na: a a | "x"',
    "start: <|unknown|>",
    'root ::= root "a" | [^"]{3,} #',
    "root ::= ((((",
    "start: [" + "<0x41>" * 40,
    nested(30),
    nested(400),
    ["a"] * 300,
    list(range(300)),
]


@dataclass(frozen=True)
class Body:
    """A request: where it goes and the bytes of it."""

    path: str
    content: bytes


def bodies(count: int, seed: int) -> Iterator[Body]:
    """Yield `count` bodies, the same ones for the same seed, all endpoints in turn."""
    chance = random.Random(seed)
    paths = list(VALID)
    for number in range(count):
        path = paths[number % len(paths)]
        body = copy.deepcopy(chance.choice([*VALID[path], *REFUSED.get(path, ())]))
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            mutate(body, chance)
        yield Body(path, written(body, chance))


def mutate(body: dict[str, Any], chance: random.Random) -> None:
    """Change one place of `body`, wherever in its depth."""
    places = [
        (holder, key) for holder, key in _places(body) if key != "model" or chance.random() < 0.1
    ]
    if not places:
        return
    holder, key = chance.choice(places)
    chance.choice(CHANGES)(holder, key, chance)


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    if depth > 12:
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner, depth + 1)


def _exchange(holder: Any, key: Any, chance: random.Random) -> None:
    holder[key] = copy.deepcopy(chance.choice(STRANGE))


def _drop(holder: Any, key: Any, chance: random.Random) -> None:
    del holder[key]


def _wrap(holder: Any, key: Any, chance: random.Random) -> None:
    holder[key] = chance.choice([[holder[key]], {"value": holder[key]}, json.dumps(holder[key])])


def _rename(holder: Any, key: Any, chance: random.Random) -> None:
    if isinstance(holder, dict):
        holder[chance.choice(["", f"{key}s", "\ud800", "__class__", "x" * 300])] = holder.pop(key)


def _repeat(holder: Any, key: Any, chance: random.Random) -> None:
    if isinstance(holder, list):
        holder.extend([holder[key]] * chance.choice([1, 20]))
    elif isinstance(holder[key], str):
        holder[key] = holder[key] * chance.choice([2, 50])


def _add(holder: Any, key: Any, chance: random.Random) -> None:
    if isinstance(holder, dict):
        name = chance.choice(
            ["n", "best_of", "audio", "extra", "type", "content", "name", "id", "strict", "tools"]
        )
        holder[name] = copy.deepcopy(chance.choice(STRANGE))


CHANGES: list[Callable[[Any, Any, random.Random], None]] = [
    _exchange,
    _exchange,
    _exchange,
    _drop,
    _wrap,
    _rename,
    _repeat,
    _add,
]


def written(body: dict[str, Any], chance: random.Random) -> bytes:
    """The body as JSON; now and then as what only begins like it."""
    text = json.dumps(body).encode()
    match chance.randrange(25):
        case 0:
            return text[: chance.randrange(len(text))]
        case 1:
            at = chance.randrange(len(text))
            return text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :]
        case 2:
            return text.replace(b'"', b'"\xed\xa0\x80', 1)
        case 3:
            return json.dumps(body).encode("utf-16")
        case 4:
            return chance.choice(
                [b"", b"[]", b"null", b'"', b"1e999", b"[" * 50_000, b'{"a":' * 5_000, b"\xff"]
            )
    return text
