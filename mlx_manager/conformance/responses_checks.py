"""What OpenAI's Responses API promises: answers whole and streamed, and what is stored of them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from mlx_manager.conformance.check import Check
from mlx_manager.conformance.recorded import RESPONSES
from mlx_manager.conformance.subject import (
    Event,
    NotApplicable,
    Subject,
    error_of,
    expect,
    said,
)
from mlx_manager.conformance.words import COUNT_TO_TEN

ENDS = ("completed", "incomplete")
# More than is written before its client has said that it has changed its mind.
ENDLESS = 100_000
PATIENCE_S = 60.0


def check_response(events: list[Event]) -> None:
    """Raise Broken unless a response's stream begins and ends as it should, with its events numbered."""
    names = [event.name for event in events]
    expect(names[:1] == ["response.created"], f"the stream begins with {names[:1]}")
    ends = ("response.completed", "response.incomplete")
    expect(names[-1] in ends, f"the stream ends with {names[-1]}")
    numbers = [event.json["sequence_number"] for event in events]
    expect(numbers == list(range(len(events))), "the events are not numbered from 0 on")


async def response_streamed(subject: Subject) -> None:
    """A streamed response says the same as a whole one, and each of its items is begun and done."""
    whole = await _response(subject, **_asking(COUNT_TO_TEN), store=False)
    expect(whole["object"] == "response" and whole["status"] in ENDS, f"it is {whole['status']!r}")
    events = await subject.events(RESPONSES, {**_asking(COUNT_TO_TEN), "store": False})
    check_response(events)
    begun = [one.json["output_index"] for one in events if one.name.endswith("item.added")]
    done = [one.json["item"] for one in events if one.name.endswith("item.done")]
    expect(begun == list(range(len(done))), f"items are begun as {begun}, and {len(done)} are done")
    last = events[-1].json["response"]
    expect(_texts(last) == _texts(whole), "the stream says something else")
    expect(last["output"] == done, "the response has other items than the stream")


async def gone_on_from(subject: Subject) -> None:
    """With `previous_response_id` the model reads what it would read of all items sent again."""
    first = await _response(subject, **_asking("Hello"))
    asked = {"input": "And now?", "previous_response_id": first["id"]}
    again = [
        {"role": "user", "content": "Hello"},
        *first["output"],
        {"role": "user", "content": "And now?"},
    ]
    counts = [
        (await subject.answer(f"{RESPONSES}/input_tokens", body))["input_tokens"]
        for body in (asked, {"input": again})
    ]
    expect(counts[0] == counts[1], f"{counts[0]} tokens are read, and {counts[1]} of all items")
    unknown = await subject.post(RESPONSES, {"input": "x", "previous_response_id": "resp_none"})
    expect(unknown.status_code == 404, said(unknown))
    await subject.client.delete(f"{RESPONSES}/{first['id']}")


async def kept(subject: Subject) -> None:
    """A response can be asked for again with the items that it was asked, until it is deleted."""
    first = await _response(subject, **_asking("Hello"))
    path = f"{RESPONSES}/{first['id']}"
    again = (await subject.client.get(path)).json()
    expect(again["output"] == first["output"], "it is kept as something else")
    items = (await subject.client.get(f"{path}/input_items")).json()["data"]
    expect([item["role"] for item in items] == ["user"], f"its items are {items}")
    deleted = await subject.client.delete(path)
    expect(deleted.status_code == 200, said(deleted))
    gone = await subject.client.get(path)
    expect(gone.status_code == 404, f"deleted, and asked for again: {said(gone)}")


async def not_kept(subject: Subject) -> None:
    """With `store` false it is not kept."""
    made = await _response(subject, **_asking("Hello"), store=False)
    found = await subject.client.get(f"{RESPONSES}/{made['id']}")
    expect(found.status_code == 404, said(found))


async def in_the_background(subject: Subject) -> None:
    """In the background a response is queued, and completed when it is asked for later."""
    begun = await _response(subject, **_asking("Hello"), background=True)
    path = f"{RESPONSES}/{begun['id']}"
    expect(begun["status"] in ("queued", "in_progress"), f"it begins as {begun['status']!r}")
    async with asyncio.timeout(PATIENCE_S):
        while (ended := (await subject.client.get(path)).json())["status"] not in ENDS:
            expect(ended["status"] in ("queued", "in_progress"), f"it is {ended['status']!r}")
            await asyncio.sleep(0.05)
    expect(bool(ended["output"]), "it has no output")
    await subject.client.delete(path)


async def cancelled(subject: Subject) -> str | None:
    """What runs in the background ends when it is cancelled."""
    asked = {**_asking(COUNT_TO_TEN), "max_output_tokens": ENDLESS, "ignore_eos": True}
    path = f"{RESPONSES}/{(await _response(subject, **asked, background=True))['id']}"
    ended = (await subject.client.post(f"{path}/cancel")).json()
    await subject.client.delete(path)
    if ended["status"] in ENDS:
        return "it was over before it could be cancelled"
    expect(ended["status"] == "cancelled", f"it is {ended['status']!r}")
    return None


def _asking(text: str) -> dict[str, Any]:
    return {"input": text, "temperature": 0, "max_output_tokens": 24}


async def _response(subject: Subject, **fields: Any) -> dict[str, Any]:
    response = await subject.post(RESPONSES, fields)
    check_there(response)
    expect(response.status_code == 200, said(response))
    return dict(response.json())


def check_there(response: httpx.Response) -> None:
    """Raise NotApplicable where a server has no such endpoint."""
    if response.status_code == 404 and error_of(response).get("code") == "not_found":
        raise NotApplicable("this server has no /v1/responses")


def _texts(response: dict[str, Any]) -> list[str]:
    """What its items say."""
    return [part["text"] for item in response["output"] for part in item.get("content") or ()]


RESPONSES_CHECKS = (
    Check("responses", "streamed", response_streamed),
    Check("responses", "gone on from", gone_on_from),
    Check("responses", "kept, deleted", kept),
    Check("responses", "store: false", not_kept),
    Check("responses", "background", in_the_background),
    Check("responses", "cancelled", cancelled),
)
