"""Requests as the installed SDKs send them, taken off the wire; `python -m tests.wire.sdk_requests`.

Each is a file in `recorded/`: what was called, and the body that left. A test records them again and compares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import anthropic as anthropic_sdk
import openai as openai_sdk

from tests.wire.response_calls import RESPONSES

RECORDED = Path(__file__).parent / "recorded"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "Tells the weather", "parameters": SCHEMA}
TOOL = {"type": "function", "function": {**FUNCTION, "strict": True}}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Zürich", "days": 3}'},
}
CONVERSATION: list[Any] = [
    {"role": "user", "content": "What is the weather in Zürich?"},
    {"role": "assistant", "content": "I look it up.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
]
BLOCKS: list[Any] = [
    {"role": "user", "content": [{"type": "text", "text": "What is the weather in Zürich?"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "I look it up."},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Zürich", "days": 3}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]},
            {"type": "text", "text": "And tomorrow?"},
        ],
    },
]  # fmt: skip
Ask = Callable[[Any], Any]

OPENAI: Mapping[str, Ask] = {
    "openai-plain": lambda client: client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "Hi"}]
    ),
    "openai-developer": lambda client: client.chat.completions.create(
        model="m",
        messages=[
            {"role": "developer", "content": "Answer in French."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": "ann"},
        ],
        reasoning_effort="low",
        max_completion_tokens=50,
    ),
    "openai-several-systems": lambda client: client.chat.completions.create(
        model="m",
        messages=[
            {"role": "system", "content": "You are brief."},
            {"role": "system", "content": "You are kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "system", "content": "The user is in Bern now."},
            {"role": "user", "content": "Where am I?"},
        ],
        temperature=0.2,
        top_p=0.9,
        seed=7,
        stop=["\n\n", "END"],
        frequency_penalty=0.1,
        presence_penalty=-0.1,
        logit_bias={"5": -100},
    ),
    "openai-tools": lambda client: client.chat.completions.create(
        model="m",
        messages=CONVERSATION,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
    ),
    "openai-format": lambda client: client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "Bern for three days"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True},
        },
    ),
}
ANTHROPIC: Mapping[str, Ask] = {
    "anthropic-plain": lambda client: client.messages.create(
        model="m", max_tokens=50, messages=[{"role": "user", "content": "Hi"}]
    ),
    "anthropic-systems": lambda client: client.messages.create(
        model="m",
        max_tokens=50,
        system=[
            {"type": "text", "text": "You are brief.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "You are kind."},
        ],
        messages=[
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "system", "content": "The user is in Bern now."},
            {"role": "user", "content": "Where am I?"},
        ],
        stop_sequences=["END"],
    ),
    "anthropic-tools": lambda client: client.messages.create(
        model="m",
        max_tokens=50,
        messages=BLOCKS,
        tools=[
            {
                "name": "weather",
                "description": "Tells the weather",
                "input_schema": SCHEMA,
                "strict": True,
            }
        ],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stream=True,
    ),
    "anthropic-thinking": lambda client: client.messages.create(
        model="m",
        max_tokens=2000,
        messages=[
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "A greeting.", "signature": "c2lnbmVk"},
                    {"type": "text", "text": "Hello."},
                ],
            },
            {"role": "user", "content": "Who are you?"},
        ],
        thinking={"type": "adaptive", "display": "summarized"},
        output_config={"effort": "low"},
    ),
    "anthropic-format": lambda client: client.messages.create(
        model="m",
        max_tokens=50,
        messages=[{"role": "user", "content": "Bern for three days"}],
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    ),
}


NAMES = (*OPENAI, *RESPONSES, *ANTHROPIC)


class Listener(BaseHTTPRequestHandler):
    """Keeps what is sent to it, and refuses it."""

    sent: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        """Take a request."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.sent.append({"path": self.path, "body": body})
        self.send_response(418)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def listening() -> Iterator[str]:
    """Take requests at the address given, in a thread."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def sent_by(name: str, address: str) -> dict[str, Any]:
    """Return what the SDK sends to `address` for the call of this name: its path and its body."""
    asks = {**OPENAI, **RESPONSES}
    if name in asks:
        with openai_sdk.OpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0) as openai:
            _refused(lambda: asks[name](openai), openai_sdk.APIStatusError)
    else:
        with anthropic_sdk.Anthropic(base_url=address, api_key="k", max_retries=0) as anthropic:
            _refused(lambda: ANTHROPIC[name](anthropic), anthropic_sdk.APIStatusError)
    return Listener.sent.pop()


def _refused(ask: Callable[[], Any], refusal: type[Exception]) -> None:
    with suppress(refusal):
        ask()
        raise AssertionError("the refusal did not arrive")


def main() -> None:
    """Write the files anew."""
    RECORDED.mkdir(exist_ok=True)
    with listening() as address:
        for name in NAMES:
            text = json.dumps(sent_by(name, address), indent=2, ensure_ascii=False)
            (RECORDED / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
