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
