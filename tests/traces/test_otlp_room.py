"""What senders are told of their spans is what the store takes, however many of them send at once."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from mlx_manager.observability.span_record import SpanRecord
from mlx_manager.traces.otlp_api import router
from mlx_manager.traces.store import StoreOptions, TraceStore
from tests.support.running import settings_for
from tests.traces.records import START_NS, S, span, span_id, trace_id

PATH = "/otlp/v1/traces"
# Of 40 places others get 30.
OPTIONS = StoreOptions(capacity=40, linger_s=0)


def body_of(trace: int, count: int) -> dict[str, object]:
    """A request with so many spans of one trace."""
    spans = [
        {
            "traceId": trace_id(trace),
            "spanId": span_id(number),
            "name": "work",
            "startTimeUnixNano": str(START_NS),
            "endTimeUnixNano": str(START_NS + S),
        }
        for number in range(1, count + 1)
    ]
    return {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}


@contextmanager
def held(store: TraceStore) -> Iterator[None]:
    """Let nothing out of the queue until the block ends."""
    is_held, is_free = threading.Event(), threading.Event()

    def slow() -> SpanRecord:
        is_held.set()
        is_free.wait(30)
        return span(999, 1)

    store.put(slow)
    assert is_held.wait(30)
    try:
        yield
    finally:
        is_free.set()


def sender(store: TraceStore, folder: Path) -> httpx.AsyncClient:
    """A client of an application that has this store and nothing else."""
    app = FastAPI()
    app.state.server = SimpleNamespace(traces=store, settings=settings_for(folder, folder))
    app.include_router(router)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


async def send_at_once(http: httpx.AsyncClient, sizes: tuple[int, ...]) -> list[httpx.Response]:
    """The answers to requests of so many spans, of traces 1, 2, ...; none is read before all have begun."""
    everyone = asyncio.Barrier(len(sizes))

    async def content(trace: int, count: int) -> AsyncIterator[bytes]:
        await everyone.wait()
        yield json.dumps(body_of(trace, count)).encode()

    headers = {"Content-Type": "application/json"}
    return await asyncio.gather(
        *(
            http.post(PATH, content=content(trace, count), headers=headers)
            for trace, count in enumerate(sizes, 1)
        )
    )


def rejected(answer: httpx.Response, sent: int) -> int:
    """How many spans the answer says were not taken."""
    if answer.status_code == 503:
        assert answer.headers["Retry-After"] == "1"
        return sent
    assert answer.status_code == 200
    success = answer.json().get("partialSuccess", {"rejectedSpans": "0"})
    assert "errorMessage" not in success or "no room" in success["errorMessage"]
    return int(success["rejectedSpans"])


def stored(store: TraceStore, trace: int) -> int:
    found = store.get_trace(trace_id(trace))
    return len(found.spans) if found else 0


@pytest.mark.parametrize(
    "sizes", [(7,) * 12, (50,) * 4, (7, 50) * 5, (50, 1, 30) * 3, (10,) * 3], ids=str
)
async def test_each_of_many_senders_is_told_how_many_of_its_spans_are_kept(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    with TraceStore(tmp_path / "traces.db", OPTIONS) as store:
        async with sender(store, tmp_path) as http:
            with held(store):
                answers = await send_at_once(http, sizes)
                assert store.put(lambda: span(998, 1)), "there is still room for our own"
            assert store.flush(30)

        refused = [rejected(answer, size) for answer, size in zip(answers, sizes, strict=True)]
        kept = [stored(store, at) for at in range(1, len(sizes) + 1)]
        assert kept == [size - lost for size, lost in zip(sizes, refused, strict=True)]
        assert sum(refused) == sum(sizes) - sum(kept)
        assert sum(kept) <= 30
        # What is to be sent again isn't lost.
        assert store.dropped == sum(
            lost for answer, lost in zip(answers, refused, strict=True) if answer.is_success
        )


async def test_who_was_refused_for_want_of_room_is_taken_whole_when_it_tries_again(
    tmp_path: Path,
) -> None:
    with TraceStore(tmp_path / "traces.db", OPTIONS) as store:
        async with sender(store, tmp_path) as http:
            with held(store):
                first = await http.post(PATH, json=body_of(1, 20))
                refused = await http.post(PATH, json=body_of(2, 20))
            assert store.flush(30)
            again = await http.post(PATH, json=body_of(2, 20))
            assert store.flush(30)

        assert [one.status_code for one in (first, refused, again)] == [200, 503, 200]
        assert [one.json() for one in (first, again)] == [{}, {}]
        assert "again a little later" in refused.json()["message"]
        assert (stored(store, 1), stored(store, 2), store.dropped) == (20, 20, 0)


async def test_spans_that_are_none_and_those_without_room_are_counted_together(
    tmp_path: Path,
) -> None:
    body = body_of(1, 34)
    body["resourceSpans"] += [{"scopeSpans": [{"spans": [{"name": "no ids"}]}]}]  # type: ignore[operator]
    with TraceStore(tmp_path / "traces.db", OPTIONS) as store:
        async with sender(store, tmp_path) as http:
            with held(store):
                answer = await http.post(PATH, json=body)
            assert store.flush(30)
        success = answer.json()["partialSuccess"]
        assert success["rejectedSpans"] == "5"
        assert "no valid ids" in success["errorMessage"]
        assert "no room for 4 spans" in success["errorMessage"]
        assert stored(store, 1) == 30
