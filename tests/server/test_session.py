"""A client says which conversation a request belongs to, and nothing else that it says there is kept."""

from __future__ import annotations

import time

import httpx
import pytest
from starlette.datastructures import Headers

from mlx_manager.mlx_server.middleware.session import session_of
from tests.conftest import TINY
from tests.support.spans import Spans


@pytest.mark.parametrize(
    ("headers", "session"),
    [
        ([], None),
        ([("X-Session-ID", "agent-1:run/2")], "agent-1:run/2"),
        ([("baggage", "session.id=s-1")], "s-1"),
        ([("baggage", "user=x , session.id = s-1 ;property=1, other=y")], "s-1"),
        ([("baggage", "a=b"), ("baggage", "session.id=s-1")], "s-1"),
        ([("baggage", "session.id=s-1,gen_ai.conversation.id=c-1")], "c-1"),
        ([("X-Session-ID", "x-1"), ("baggage", "session.id=s-1")], "x-1"),
        ([("X-Session-ID", "not plain"), ("baggage", "session.id=s-1")], "s-1"),
        ([("baggage", "session.id=a%2Fb")], "a/b"),
        ([("baggage", "session.id=a%0Ab")], None),
        ([("baggage", "session.id=")], None),
        ([("baggage", "session.id=" + "x" * 129)], None),
        ([("X-Session-ID", "x" * 129)], None),
        ([("X-Session-ID", "x" * 128)], "x" * 128),
        ([("baggage", "a=b," * 64 + "session.id=s-1")], None),
        ([("baggage", "a=" + "b" * 8192 + ",session.id=s-1")], None),
    ],
)
def test_a_session_comes_from_its_header_or_from_baggage(
    headers: list[tuple[str, str]], session: str | None
) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    assert session_of(Headers(raw=raw)) == session


@pytest.mark.parametrize("pattern", [",", "=", ";", "%", " ", "%2", "a=b,", "session.id="])
def test_no_baggage_takes_long_to_read(pattern: str) -> None:
    headers = Headers({"baggage": pattern * 1_000_000})
    start = time.process_time()
    session_of(headers)
    assert time.process_time() - start < 1


async def test_the_chats_span_names_its_session_and_nothing_else_of_the_baggage(
    http: httpx.AsyncClient, spans: Spans
) -> None:
    answer = await http.post(
        "/v1/chat/completions",
        json={"model": TINY, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
        headers={"baggage": "session.id=s-4711,secret=marked-secret"},
    )
    chat = await spans.wait(f"chat {TINY}")

    assert answer.status_code == 200
    assert (chat.attributes or {})["gen_ai.conversation.id"] == "s-4711"
    assert "marked-secret" not in spans.text()
