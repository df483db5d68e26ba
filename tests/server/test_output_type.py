"""The trace says whether an answer was held to JSON or to something else, whichever API asked for it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from opentelemetry.trace import SpanKind

from tests.conftest import TINY
from tests.support.running import RunningServer, eventually
from tests.support.spans import Spans

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "Say something."}]
CHAT, MESSAGE = "/v1/chat/completions", "/v1/messages"
COMPLETION, RESPONSE = "/v1/completions", "/v1/responses"
NAMED = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("path", "asked", "output_type", "held_to"),
    [
        (CHAT, {}, "text", None),
        (CHAT, {"response_format": {"type": "text"}}, "text", None),
        (CHAT, {"response_format": {"type": "json_object"}}, "json", "json_schema"),
        (CHAT, {"response_format": NAMED}, "json", "json_schema"),
        (CHAT, {"structured_outputs": {"json": SCHEMA}}, "json", "json_schema"),
        (CHAT, {"structured_outputs": {"choice": ["yes", "no"]}}, "text", "grammar"),
        (CHAT, {"structured_outputs": {"regex": "yes|no"}}, "text", "regex"),
        (CHAT, {"structured_outputs": {"grammar": 'start: "yes"'}}, "text", "grammar"),
        (COMPLETION, {"structured_outputs": {"json": SCHEMA}}, "json", "json_schema"),
        (
            MESSAGE,
            {"output_format": {"type": "json_schema", "schema": SCHEMA}},
            "json",
            "json_schema",
        ),
        (MESSAGE, {}, "text", None),
        (
            RESPONSE,
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
            "json",
            "json_schema",
        ),
        (RESPONSE, {"text": {"format": {"type": "json_object"}}}, "json", "json_schema"),
        (RESPONSE, {}, "text", None),
    ],
)
async def test_output_type(
    server: RunningServer,
    spans: Spans,
    path: str,
    asked: dict[str, Any],
    output_type: str,
    held_to: str | None,
) -> None:
    words: dict[str, dict[str, Any]] = {
        CHAT: {"messages": MESSAGES, "max_tokens": 40},
        MESSAGE: {"messages": MESSAGES, "max_tokens": 40},
        COMPLETION: {"prompt": "Say", "max_tokens": 40},
        RESPONSE: {"input": "Say", "store": False, "max_output_tokens": 40},
    }
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        response = await http.post(path, json={"model": TINY, **words[path], **asked})
    assert response.status_code == 200, response.text
    await eventually(lambda: bool(spans.of_kind(SpanKind.SERVER)))
    await server.close_books()
    operation = "text_completion" if path == COMPLETION else "chat"
    chat = spans.one(f"{operation} {TINY}")
    assert (chat.attributes or {})["gen_ai.output.type"] == output_type
    parsed = [span.attributes or {} for span in spans.all if span.name == "parse"]
    assert [one["mlx.parse.held_to"] for one in parsed] == ([held_to] if held_to else [])
