"""NaN and Infinity, which Python reads as JSON and JSON doesn't know, are refused as what they are."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from mlx_manager.wire.anthropic.schema import MessagesBody
from mlx_manager.wire.openai.responses.schema import ResponsesBody
from mlx_manager.wire.openai.schema import ChatCompletionBody, CompletionBody
from tests.server.test_tools import MODEL

HI = [{"role": "user", "content": "Hi"}]
ENDPOINTS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatCompletionBody, {"messages": HI}),
    "/v1/completions": (CompletionBody, {"prompt": "Hi"}),
    "/v1/responses": (ResponsesBody, {"input": "Hi"}),
    "/v1/messages": (MessagesBody, {"messages": HI, "max_tokens": 5}),
}


def numbers_of(body: type[BaseModel]) -> list[str]:
    """The parameters that are numbers with a fraction, or tables of them."""
    fields = body.model_json_schema()["properties"]
    return [name for name, schema in fields.items() if '"number"' in json.dumps(schema)]


PARAMETERS = [(path, name) for path, (body, _) in ENDPOINTS.items() for name in numbers_of(body)]


def test_all_numbers_are_looked_at() -> None:
    assert {name for path, name in PARAMETERS if path == "/v1/messages"} == {"temperature", "top_p"}
    assert len({name for _, name in PARAMETERS}) >= 9


@pytest.mark.parametrize(("path", "name"), PARAMETERS)
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("-Infinity", "-Infinity"),
        ("1e999", "Infinity"),
        ('"nan"', "NaN"),
    ],
)
async def test_what_is_no_finite_number_is_refused_as_such(
    http: httpx.AsyncClient, path: str, name: str, written: str, said: str
) -> None:
    value: Any = {"5": "VALUE"} if name == "logit_bias" else "VALUE"
    body = json.dumps({"model": MODEL, **ENDPOINTS[path][1], name: value})
    response = await http.post(
        path,
        content=body.replace('"VALUE"', written),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith(name)
    assert message.endswith(f"Input should be a finite number, and not {said}.")


SCHEMA = {"type": "object", "properties": {"at": {"const": "VALUE"}}}
FUNCTION = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
USE = {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "VALUE"}}
FREE: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"tools": [FUNCTION]}, "tools[0].function.parameters"),
    ("/v1/chat/completions", {"chat_template_kwargs": {"a": ["VALUE"]}}, "chat_template_kwargs"),
    (
        "/v1/chat/completions",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": SCHEMA},
            }
        },
        "response_format.json_schema.schema",
    ),
    ("/v1/completions", {"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
    (
        "/v1/responses",
        {"tools": [{"type": "function", "name": "l", "parameters": SCHEMA}]},
        "tools",
    ),
    ("/v1/messages", {"tools": [{"name": "l", "input_schema": SCHEMA}]}, "tools[0].input_schema"),
    (
        "/v1/messages",
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        "output_config.format.schema",
    ),
    (
        "/v1/messages",
        {"messages": [*HI, {"role": "assistant", "content": [USE]}, *HI]},
        "messages[1].content[0].input",
    ),
]


@pytest.mark.parametrize(("path", "fields", "place"), FREE)
@pytest.mark.parametrize("written", ["NaN", "-Infinity", "1e999"])
async def test_in_what_clients_describe_themselves_they_are_refused_with_the_place(
    http: httpx.AsyncClient, path: str, fields: dict[str, Any], place: str, written: str
) -> None:
    body = json.dumps({"model": MODEL, **ENDPOINTS[path][1], **fields})
    response = await http.post(
        path,
        content=body.replace('"VALUE"', written),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"] == f"'{place}' has a number that JSON doesn't know."
    if path != "/v1/messages":
        assert error["param"] == place
