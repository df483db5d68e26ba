"""Bodies that are almost right: valid ones with something exchanged, left out, repeated or broken, from a seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MODEL = "test/fuzzed"
ENCODER = "test/vectors"
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'},
}
ASKED = {"role": "user", "content": "What is the weather in Bern?"}
CHAT = {"model": MODEL, "max_tokens": 4, "messages": [ASKED]}
TEXT = {"model": MODEL, "max_tokens": 4, "prompt": "Once upon a time"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Bern"}}
MESSAGE_TOOL = {"name": "get_weather", "description": "Weather", "input_schema": WEATHER}

# By endpoint, bodies that are answered with 200.
VALID: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        CHAT,
        CHAT
        | {"stream": True, "stream_options": {"include_usage": True}, "stop": ["\n\n", "END"]}
        | {"temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": 1}
        | {"presence_penalty": 1, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
        | {"logit_bias": {"5": -100}, "logprobs": True, "top_logprobs": 3}
        | {"xtc_probability": 0.5, "xtc_threshold": 0.1, "min_tokens": 1},
        CHAT | {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        CHAT
        | {
            "tools": [TOOL],
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                ASKED,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            ],
        },
        CHAT
        | {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "place", "schema": WEATHER, "strict": True},
            }
        },
        CHAT | {"structured_outputs": {"regex": "[0-9]{2}"}, "stream": True},
        CHAT | {"chat_template_kwargs": {"shout": True}, "reasoning_effort": "low", "user": "me"},
    ],
    "/v1/completions": [
        TEXT,
        TEXT | {"stream": True, "logprobs": 2, "stop": "x", "seed": 3},
        TEXT | {"prompt": [5, 6, 7], "echo": True, "temperature": 0},
        TEXT | {"structured_outputs": {"choice": ["yes", "no"]}},
        TEXT | {"ignore_eos": True, "logit_bias": {"7": 5}},
    ],
    "/v1/responses": [
        {"model": MODEL, "max_output_tokens": 16, "input": "Hello", "store": False},
        {
            "model": MODEL,
            "max_output_tokens": 16,
            "stream": True,
            "instructions": "Be brief.",
            "temperature": 0.5,
            "metadata": {"a": "b"},
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
                {"type": "message", "role": "assistant", "content": "Hi"},
                {"role": "user", "content": "And now?"},
            ],
        },
        {
            "model": MODEL,
            "max_output_tokens": 16,
            "tools": [{"type": "function", **TOOL["function"]}],  # type: ignore[dict-item]
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "input": [
                ASKED,
                {
                    "type": "function_call",
                    "call_id": "c1",
                    "name": "get_weather",
                    "arguments": "{}",
                },
                {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            ],
        },
        {
            "model": MODEL,
            "max_output_tokens": 16,
            "input": "Hello",
            "reasoning": {"effort": "low"},
            "text": {
                "format": {
                    "type": "json_schema",
                    "name": "place",
                    "schema": WEATHER,
                    "strict": True,
                }
            },
        },
        {"model": MODEL, "max_output_tokens": 16, "input": "Hello", "background": True},
    ],
    "/v1/embeddings": [
        {"model": ENCODER, "input": ["the cat", "a dog"], "encoding_format": "base64"},
        {"model": ENCODER, "input": [[5, 6], [7]], "dimensions": 8},
        {"model": ENCODER, "input": "the cat", "user": "me"},
    ],
    "/v1/messages": [
        {"model": MODEL, "max_tokens": 4, "messages": [ASKED], "temperature": 0.3, "top_k": 3},
        {
            "model": MODEL,
            "max_tokens": 4,
            "stream": True,
            "system": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}],
            "tools": [MESSAGE_TOOL],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            "stop_sequences": ["END"],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "metadata": {"user_id": "me"},
            "messages": [
                ASKED,
                {"role": "assistant", "content": [{"type": "text", "text": "Wait."}, USE]},
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_1",
                            "content": [{"type": "text", "text": "sunny"}],
                            "is_error": False,
                        }
                    ],
                },
            ],
        },
        {
            "model": MODEL,
            "max_tokens": 4,
            "messages": [ASKED],
            "output_config": {
                "effort": "low",
                "format": {"type": "json_schema", "schema": WEATHER},
            },
        },
    ],
    "/v1/messages/count_tokens": [
        {"model": MODEL, "messages": [ASKED], "tools": [MESSAGE_TOOL], "system": "Hi"},
    ],
    "/v1/tokenize": [
        {"model": MODEL, "prompt": "Once upon", "return_token_strs": True},
        {"model": ENCODER, "prompt": "the cat", "add_special_tokens": False},
        {"model": MODEL, "messages": [ASKED], "tools": [TOOL], "tool_choice": "auto"}
        | {"chat_template_kwargs": {"shout": True}, "add_generation_prompt": True},
    ],
    "/v1/detokenize": [
        {"model": MODEL, "tokens": [5, 6, 7], "skip_special_tokens": True},
        {"model": ENCODER, "tokens": [5, 6]},
    ],
    "/otlp/v1/traces": [
        {
            "resourceSpans": [
                {
                    "resource": {
                        "attributes": [{"key": "service.name", "value": {"stringValue": "x"}}]
                    },
                    "scopeSpans": [
                        {
                            "scope": {"name": "x"},
                            "spans": [
                                {
                                    "traceId": "5b8efff798038103d269b633813fc60c",
                                    "spanId": "eee19b7ec3c1b174",
                                    "name": "x",
                                    "kind": 2,
                                    "startTimeUnixNano": "1544712660000000000",
                                    "endTimeUnixNano": "1544712661000000000",
                                    "attributes": [{"key": "n", "value": {"intValue": "5"}}],
                                    "events": [{"timeUnixNano": "1544712660500000000"}],
                                    "status": {"code": 1},
                                }
                            ],
                        }
                    ],
                }
            ]
        }
    ],
}


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
        body = copy.deepcopy(chance.choice(VALID[path]))
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
        name = chance.choice(["n", "audio", "functions", "extra", "type", "content", "name", "id"])
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
