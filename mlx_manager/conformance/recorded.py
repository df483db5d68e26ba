"""What a body of a real client is, and what several of them have in common.

Each is written anew after the client's published source or documentation, with made-up content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_manager.conformance.words import QUESTION

RESPONSES = "/v1/responses"
USER = {"role": "user", "content": QUESTION}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
TEXT = {"type": "string"}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
# A picture of one pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
OBJECT_SCHEMA = {
    "properties": {"city": {"title": "City", "enum": ["Bern", "Oslo"], "type": "string"}},
    "required": ["city"],
    "title": "Place",
    "type": "object",
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A body of a client, where it goes, and why it may be refused, if it may."""

    client: str
    what: str
    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    may_refuse: str = ""

    @property
    def surface(self) -> str:
        """The endpoint, without parameters."""
        return self.path.split("?")[0]


def function(name: str, description: str, **parameters: Any) -> dict[str, Any]:
    """A tool of a chat completion."""
    schema = {"type": "object", "properties": parameters, "additionalProperties": False}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": schema},
    }
