"""What the checks ask, and how an answer to it looks."""

from __future__ import annotations

import json
from typing import Any

from mlx_manager.conformance.subject import expect

COUNT_TO_TEN = "Count from one to ten."
QUESTION = "What is the weather in Bern?"
CHOICES = ["red", "green", "blue"]
ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
# Every value of it is short: an answer that keeps to it has an end within few tokens.
PLACE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Oslo"]}, "is_capital": {"type": "boolean"}},
    "required": ["city", "is_capital"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a place",
        "parameters": ARGUMENTS,
    },
}
TIME: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the time of a place",
        "parameters": ARGUMENTS,
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'},
}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 21 degrees"},
]
# The same tool and conversation in Anthropic's words.
WEATHER_TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather of a place",
    "input_schema": ARGUMENTS,
}
USE: dict[str, Any] = {
    "type": "tool_use",
    "id": "toolu_1",
    "name": "get_weather",
    "input": {"city": "Bern"},
}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}
USED: list[dict[str, Any]] = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": [USE]},
    {"role": "user", "content": [RESULT]},
]


def check_arguments(written: str) -> None:
    """Raise Broken unless these are arguments of the weather's tool."""
    found = json.loads(written)
    is_one = isinstance(found, dict) and set(found) == {"city"} and isinstance(found["city"], str)
    expect(is_one, f"arguments are {written!r}")


def check_place(text: str) -> None:
    """Raise Broken unless this is JSON of the place's schema."""
    found = json.loads(text)
    is_one = isinstance(found, dict) and set(found) == {"city", "is_capital"}
    expect(is_one and found["city"] in ("Bern", "Oslo"), f"it is {text!r}")
    expect(isinstance(found["is_capital"], bool), f"it is {text!r}")
