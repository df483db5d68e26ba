"""`/v1/responses` through the real SDK, with the starter model, which really calls and really thinks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import httpx
import openai as sdk
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from mlx_manager.mlx_server.app import create_app
from mlx_manager.mlx_server.audit.search import RequestFilter, search
from mlx_manager.mlx_server.audit.tables import AuditRow
from tests.conftest import ENDLESS_TOKENS, TINY
from tests.support.process import started
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans

MODEL = "mlx-manager/starter"
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a place",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
QUESTION = "What is the weather in Bern?"
JSON = {"Content-Type": "application/json"}
ENDLESS = {"model": TINY, "max_output_tokens": ENDLESS_TOKENS}


async def ask(client: AsyncOpenAI, **fields: Any) -> Any:
    asked: dict[str, Any] = {"model": MODEL, "input": QUESTION, "max_output_tokens": 200}
    return await client.responses.create(**asked | {"temperature": 0} | fields)


async def no_longer(client: AsyncOpenAI, response_id: str, *statuses: str) -> Any:
    """The response in the background once it has none of these statuses."""
    async with asyncio.timeout(30):
        while True:
            response = await client.responses.retrieve(response_id)
            if response.status not in statuses:
                return response
            await asyncio.sleep(0.01)


async def finished(client: AsyncOpenAI, response_id: str) -> Any:
    return await no_longer(client, response_id, "queued", "in_progress")


async def row_of(server: RunningServer, request_id: str) -> AuditRow:
    """The one row of a request that has ended."""
    await eventually(lambda: bool(server.audited(request_id)))
    async with server.state.database.sessions() as session:
        [row] = await search(session, RequestFilter(request_id=request_id), 10)
    return row


def is_writing(server: RunningServer) -> bool:
    """Whether the engine of the endless answers has any, once it is loaded."""
    engines = [one.engine for one in server.pool.residents if one.files.id == TINY]
    return any(engine is not None and engine.active_sequences for engine in engines)


async def test_an_answer_has_every_field_of_the_sdks_type(openai: AsyncOpenAI) -> None:
    response = await ask(openai, instructions="Be brief.", metadata={"a": "b"}, user="me")
    plain = await openai.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": QUESTION},
        ],
        temperature=0,
        max_tokens=200,
    )
    TypeAdapter(Response).validate_python(response.to_dict(mode="json"))
    assert response.id == f"resp_{response._request_id}"
    assert (response.status, response.error, response.model) == ("completed", None, MODEL)
    assert response.output_text == plain.choices[0].message.content
    assert response.output_text
    assert (response.metadata, response.user) == ({"a": "b"}, "me")
    assert response.completed_at >= response.created_at > 0
    assert plain.usage is not None
    assert response.usage.input_tokens == plain.usage.prompt_tokens
    assert response.usage.output_tokens == plain.usage.completion_tokens


async def test_a_stream_adds_up_to_the_whole_answer(openai: AsyncOpenAI) -> None:
    whole = await ask(openai, reasoning={"effort": "high"})
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    events = []
    async for event in await ask(openai, reasoning={"effort": "high"}, stream=True):
        adapter.validate_python(event.to_dict(mode="json"))
        events.append(event)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    last = events[-1].response
    assert last.output_text == whole.output_text
    assert [item.type for item in last.output] == ["reasoning", "message"]
    assert last.output[0].content[0].text == whole.output[0].content[0].text
    assert last.usage.output_tokens_details.reasoning_tokens > 0
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == whole.output[0].content[0].text


async def test_the_sdks_stream_helper_follows_it(openai: AsyncOpenAI) -> None:
    async with openai.responses.stream(
        model=MODEL, input=QUESTION, temperature=0, tools=[WEATHER]
    ) as stream:
        kinds = [event.type async for event in stream]
        response: Any = await stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    [call] = response.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    whole = await ask(openai, tools=[WEATHER])
    assert call.arguments == whole.output[0].arguments


async def test_a_call_and_its_result_go_back_by_the_id_of_the_response(
    openai: AsyncOpenAI,
) -> None:
    first = await ask(openai, tools=[WEATHER])
    [call] = first.output
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 21 C"}
    again = await ask(openai, input=[output], previous_response_id=first.id, tools=[WEATHER])
    whole = await ask(
        openai,
        input=[
            {"role": "user", "content": QUESTION},
            call.model_dump(exclude_none=True),
            output,
        ],
        tools=[WEATHER],
    )
    assert again.previous_response_id == first.id
    assert again.output_text == whole.output_text
    assert again.usage.input_tokens == whole.usage.input_tokens > first.usage.input_tokens


async def test_a_conversation_is_rebuilt_from_what_is_stored(openai: AsyncOpenAI) -> None:
    one = await ask(openai, input="My name is Ann.", instructions="Be brief.")
    two = await ask(openai, input="And yours?", previous_response_id=one.id)
    three = await ask(openai, input="Thanks.", previous_response_id=two.id)
    turns = [
        {"role": "user", "content": "My name is Ann."},
        {"role": "assistant", "content": one.output_text},
        {"role": "user", "content": "And yours?"},
        {"role": "assistant", "content": two.output_text},
        {"role": "user", "content": "Thanks."},
    ]
    sent = await ask(openai, input=turns, store=False)
    assert three.output_text == sent.output_text
    # Instructions are not carried over.
    assert three.usage.input_tokens == sent.usage.input_tokens


async def test_stored_items_can_be_referred_to_instead_of_sent(openai: AsyncOpenAI) -> None:
    first = await ask(openai, tools=[WEATHER], reasoning={"effort": "low"})
    asked = await openai.responses.input_items.list(first.id)
    output = {
        "type": "function_call_output",
        "call_id": first.output[-1].call_id,
        "output": "sunny",
    }
    own = [asked.data[0], *first.output]
    references: Any = [{"type": "item_reference", "id": item.id} for item in own]
    referred = await ask(openai, input=[*references, output], tools=[WEATHER])
    sent = [item.model_dump(exclude_none=True) for item in own]
    whole = await ask(openai, input=[*sent, output], tools=[WEATHER])
    assert referred.output_text == whole.output_text
    assert referred.usage.input_tokens == whole.usage.input_tokens > first.usage.input_tokens
    # What is kept of it is whole, and so is what goes on from it when they are gone.
    await openai.responses.delete(first.id)
    kept = await openai.responses.input_items.list(referred.id, order="asc")
    assert [item.type for item in kept.data] == [item.type for item in own] + [output["type"]]
    assert await ask(openai, input="Thanks.", previous_response_id=referred.id)


async def test_an_item_that_is_not_stored_is_a_404_that_says_what_to_do(
    openai: AsyncOpenAI,
) -> None:
    fleeting = await ask(openai, store=False)
    for item_id in (fleeting.output[0].id, "msg_mine"):
        with pytest.raises(sdk.NotFoundError, match="Send the item itself") as refused:
            await ask(openai, input=[{"type": "item_reference", "id": item_id}])
        assert (refused.value.code, refused.value.param) == ("item_not_found", "input[0].id")


async def test_a_conversation_with_a_hole_is_refused_and_not_answered_without_it(
    openai: AsyncOpenAI,
) -> None:
    one = await ask(openai)
    two = await ask(openai, previous_response_id=one.id)
    await openai.responses.delete(one.id)
    with pytest.raises(sdk.NotFoundError, match="not whole any more") as refused:
        await ask(openai, previous_response_id=two.id)
    assert refused.value.param == "previous_response_id"


async def test_a_parsed_answer_is_an_object_of_its_class(openai: AsyncOpenAI) -> None:
    class Place(BaseModel):
        city: Literal["Bern", "Rome"]

    response = await openai.responses.parse(
        model=MODEL, input=QUESTION, text_format=Place, temperature=0, max_output_tokens=200
    )
    assert isinstance(response.output_parsed, Place)
    assert response.output_parsed == Place.model_validate_json(response.output_text)


async def test_log_probabilities_come_when_they_are_included(openai: AsyncOpenAI) -> None:
    response = await ask(openai, include=[LOGPROBS], top_logprobs=2)
    [part] = response.output[-1].content
    assert "".join(entry.token for entry in part.logprobs) == response.output_text
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


async def test_an_answer_that_was_cut_short_is_incomplete(openai: AsyncOpenAI) -> None:
    response = await ask(openai, max_output_tokens=3)
    assert response.status == response.output[-1].status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 3


async def test_a_stored_response_comes_back_as_it_was_and_can_be_deleted(
    openai: AsyncOpenAI,
) -> None:
    response = await ask(openai)
    again = await openai.responses.retrieve(response.id)
    assert again.to_dict() == response.to_dict()
    await openai.responses.delete(response.id)
    for gone in (
        openai.responses.retrieve(response.id),
        openai.responses.delete(response.id),
        ask(openai, previous_response_id=response.id),
    ):
        with pytest.raises(sdk.NotFoundError) as refused:
            await gone
        assert refused.value.code == "response_not_found"


async def test_what_a_stream_ends_with_is_what_is_stored(openai: AsyncOpenAI) -> None:
    async for event in await ask(openai, stream=True):
        last = event
    again = await openai.responses.retrieve(last.response.id)
    assert again.to_dict() == last.response.to_dict()


async def test_nothing_is_stored_of_a_response_that_is_not_to_be(
    openai: AsyncOpenAI, server: RunningServer
) -> None:
    before = server.stored_responses()
    response = await ask(openai, store=False)
    async for _ in await ask(openai, store=False, stream=True):
        pass
    assert server.stored_responses() == before
    with pytest.raises(sdk.NotFoundError):
        await openai.responses.retrieve(response.id)


async def test_input_items_come_in_pages(openai: AsyncOpenAI) -> None:
    turns = [{"role": "user", "content": f"Turn {number}"} for number in range(3)]
    response = await ask(openai, input=turns)
    items: Any = openai.responses.input_items
    page = await items.list(response.id, limit=2, order="asc")
    assert [item.content[0].text async for item in page] == ["Turn 0", "Turn 1", "Turn 2"]
    latest = await items.list(response.id, limit=1, include=[ENCRYPTED])
    assert latest.data[0].content[0].text == "Turn 2"
    with pytest.raises(sdk.BadRequestError, match=r"can't include 'file_search_call\.results'"):
        await items.list(response.id, include=["file_search_call.results"])


async def test_an_id_can_not_be_used_twice(openai: AsyncOpenAI) -> None:
    named = {"extra_headers": {"X-Request-ID": "the-same"}}
    first = await ask(openai, **named)
    with pytest.raises(sdk.BadRequestError, match="already"):
        await ask(openai, input="Something else", **named)
    assert (await openai.responses.retrieve(first.id)).output_text == first.output_text


async def test_a_response_in_the_background_is_queued_and_completes(
    openai: AsyncOpenAI, server: RunningServer, spans: Spans
) -> None:
    whole = await ask(openai)
    queued = await ask(openai, background=True)
    assert (queued.status, queued.output, queued.background) == ("queued", [], True)
    response = await finished(openai, queued.id)
    assert (response.status, response.output_text) == ("completed", whole.output_text)
    row = await row_of(server, queued._request_id)
    assert (row.outcome, row.status, row.operation) == ("completed", 200, "chat")
    assert row.output_tokens == response.usage.output_tokens
    await server.close_books()
    found = await spans.of_answer(queued.id)
    assert any(one.parent is not None for one in found if one.name == f"chat {MODEL}")


async def test_a_response_in_the_background_outlives_its_client(
    server: RunningServer, openai: AsyncOpenAI
) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as other:
        queued = await ask(other, background=True, **ENDLESS)
        await eventually(lambda: is_writing(server))
    assert (await no_longer(openai, queued.id, "queued")).status == "in_progress"
    cancelled = await openai.responses.cancel(queued.id)
    assert cancelled.status == "cancelled"
    await eventually(lambda: not is_writing(server))
    assert (await openai.responses.retrieve(queued.id)).status == "cancelled"
    # Once more changes nothing.
    assert (await openai.responses.cancel(queued.id)).to_dict() == cancelled.to_dict()
    assert (await row_of(server, queued._request_id)).outcome == "cancelled"
    with pytest.raises(sdk.BadRequestError, match="no answer to go on from"):
        await ask(openai, previous_response_id=queued.id)


async def test_deleting_a_response_in_the_background_ends_the_work(
    server: RunningServer, openai: AsyncOpenAI
) -> None:
    queued = await ask(openai, background=True, **ENDLESS)
    await eventually(lambda: is_writing(server))
    await openai.responses.delete(queued.id)
    await eventually(lambda: not is_writing(server))
    with pytest.raises(sdk.NotFoundError):
        await openai.responses.retrieve(queued.id)


async def test_what_fails_in_the_background_says_why(
    openai: AsyncOpenAI, server: RunningServer
) -> None:
    queued = await ask(openai, background=True, model="test/short", input="long " * 100)
    response = await finished(openai, queued.id)
    assert response.status == "failed"
    assert response.error is not None
    assert "Shorten it" in response.error.message
    row = await row_of(server, queued._request_id)
    assert (row.outcome, row.error_code) == ("failed", "context_length_exceeded")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_is_not_there_is_told_at_once_and_nothing_is_stored(
    openai: AsyncOpenAI, server: RunningServer, stream: bool
) -> None:
    before = server.stored_responses()
    with pytest.raises(sdk.NotFoundError, match="no/such") as refused:
        await ask(openai, background=True, model="no/such", stream=stream)
    assert refused.value.code == "model_not_found"
    assert server.stored_responses() == before
    row = await row_of(server, refused.value.response.headers["x-request-id"])
    assert (row.outcome, row.status) == ("failed", 404)


ADAPTER: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def events_of(stream: Any) -> list[Any]:
    """All events of a stream, each as the SDK's types have it."""
    found = [event async for event in stream]
    for event in found:
        ADAPTER.validate_python(event.to_dict(mode="json"))
    return found


def told(events: list[Any]) -> list[dict[str, Any]]:
    return [event.to_dict(mode="json") for event in events]


async def again(client: AsyncOpenAI, response_id: str, **query: Any) -> list[Any]:
    return await events_of(await client.responses.retrieve(response_id, stream=True, **query))


async def test_a_stream_in_the_background_says_the_same_and_is_read_again_from_anywhere(
    openai: AsyncOpenAI, server: RunningServer
) -> None:
    whole = await ask(openai, reasoning={"effort": "high"})
    stream = await ask(openai, reasoning={"effort": "high"}, background=True, stream=True)
    events = await events_of(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    last = events[-1].response
    assert (last.status, last.output_text) == ("completed", whole.output_text)
    # Whoever has read the last event can go on from it at once.
    assert await ask(openai, input="And now?", previous_response_id=last.id)
    assert (await openai.responses.retrieve(last.id)).to_dict() == last.to_dict()
    assert told(await again(openai, last.id)) == told(events)
    middle = len(events) // 2
    rest = await again(openai, last.id, starting_after=middle)
    assert told(rest) == told(events)[middle + 1 :]
    assert await again(openai, last.id, starting_after=len(events) - 1) == []
    row = await row_of(server, stream.response.headers["x-request-id"])
    assert (row.outcome, row.status, row.stream) == ("completed", 200, True)
    assert row.output_tokens == last.usage.output_tokens


async def test_a_reader_that_leaves_ends_no_work_and_goes_on_where_it_was(
    openai: AsyncOpenAI, server: RunningServer
) -> None:
    stream = await ask(openai, background=True, stream=True, **ENDLESS)
    begun = list[Any]()
    async for event in stream:
        begun.append(event)
        if len(begun) == 8:
            break
    await stream.close()
    response_id = begun[0].response.id
    await asyncio.sleep(0.05)
    assert is_writing(server)
    following = await openai.responses.retrieve(
        response_id, stream=True, starting_after=begun[-1].sequence_number
    )
    second = asyncio.create_task(again(openai, response_id))
    rest = list[Any]()
    async for event in following:
        rest.append(event)
        if len(rest) == 5:
            break
    assert [event.sequence_number for event in rest] == list(range(8, 13)), rest[-1].type
    cancelled = await openai.responses.cancel(response_id)
    rest += [event async for event in following]
    numbers = [event.sequence_number for event in [*begun, *rest]]
    assert numbers == list(range(len(numbers)))
    assert rest[-1].type == "response.incomplete"
    assert rest[-1].response.to_dict() == cancelled.to_dict()
    assert cancelled.status == "cancelled"
    assert told(await second) == told([*begun, *rest])
    assert told(await again(openai, response_id)) == told([*begun, *rest])


async def test_deleting_ends_the_streams_of_a_response(
    openai: AsyncOpenAI, server: RunningServer
) -> None:
    stream = await ask(openai, background=True, stream=True, **ENDLESS)
    first = await anext(aiter(stream))
    await openai.responses.delete(first.response.id)
    async with asyncio.timeout(10):
        async for _ in stream:
            pass
    await eventually(lambda: not is_writing(server))
    with pytest.raises(sdk.NotFoundError):
        await again(openai, first.response.id)


async def test_what_fails_in_the_background_ends_its_stream(openai: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "test/short", "input": "long " * 100}
    stream = await ask(openai, background=True, stream=True, **asked)
    events = await events_of(stream)
    kinds = [event.type for event in events]
    assert kinds == ["response.created", "response.queued", "response.failed"]
    assert "Shorten it" in events[-1].response.error.message
    assert told(await again(openai, events[0].response.id)) == told(events)


async def test_many_cancels_at_once_are_one(openai: AsyncOpenAI, server: RunningServer) -> None:
    queued = await ask(openai, background=True, **ENDLESS)
    await eventually(lambda: is_writing(server))
    answers = await asyncio.gather(*(openai.responses.cancel(queued.id) for _ in range(5)))
    assert {answer.status for answer in answers} == {"cancelled"}
    assert all(answer.to_dict() == answers[0].to_dict() for answer in answers)
    await eventually(lambda: not is_writing(server))


async def test_what_is_told_to_be_over_can_be_gone_on_from(openai: AsyncOpenAI) -> None:
    for _ in range(5):
        queued = await ask(openai, background=True, max_output_tokens=1)
        await finished(openai, queued.id)
        assert await ask(openai, previous_response_id=queued.id, max_output_tokens=1)


async def test_of_two_requests_of_one_id_at_once_one_is_refused(openai: AsyncOpenAI) -> None:
    named = {"extra_headers": {"X-Request-ID": "two-at-once"}, "max_output_tokens": 20}
    found = await asyncio.gather(*(ask(openai, **named) for _ in range(3)), return_exceptions=True)
    refused = [one for one in found if isinstance(one, Exception)]
    assert len(refused) == 2
    assert all(isinstance(one, sdk.BadRequestError) and "already" in str(one) for one in refused)
    assert (await openai.responses.retrieve("resp_two-at-once")).status in (
        "completed",
        "incomplete",
    )


async def test_more_can_be_included_when_a_response_is_asked_for(openai: AsyncOpenAI) -> None:
    responses: Any = openai.responses
    response = await ask(openai, reasoning={"effort": "high"}, include=[LOGPROBS])
    assert response.output[0].encrypted_content is None
    more = await responses.retrieve(response.id, include=[ENCRYPTED, LOGPROBS])
    assert more.output[0].encrypted_content
    assert more.output[1].to_dict() == response.output[1].to_dict()
    plain = await ask(openai)
    for name, says in ((LOGPROBS, "no log-probabilities"), ("file_search_call.results", "can't")):
        with pytest.raises(sdk.BadRequestError, match=says) as refused:
            await responses.retrieve(plain.id, include=[name])
        assert refused.value.param == "include"


async def test_reasoning_goes_back_encrypted_where_nothing_is_stored(openai: AsyncOpenAI) -> None:
    first = await ask(openai, reasoning={"effort": "high"}, include=[ENCRYPTED], store=False)
    thought, said = first.output
    turns: Any = [
        {"role": "user", "content": QUESTION},
        {"type": "reasoning", "id": thought.id, "summary": [],
         "encrypted_content": thought.encrypted_content},
        said.model_dump(exclude_none=True),
        {"role": "user", "content": "And tomorrow?"},
    ]  # fmt: skip
    sealed = await ask(openai, input=turns, store=False)
    turns[1] = thought.model_dump(exclude_none=True)
    opened = await ask(openai, input=turns, store=False)
    assert sealed.output_text == opened.output_text
    assert sealed.usage.input_tokens == opened.usage.input_tokens


async def test_tokens_are_counted_as_the_answer_reads_them(
    openai: AsyncOpenAI, server: RunningServer
) -> None:
    first = await ask(openai, instructions="Be brief.", tools=[WEATHER], max_output_tokens=5)
    asked: dict[str, Any] = {"model": MODEL, "input": QUESTION, "tools": [WEATHER]}
    told = await openai.responses.input_tokens.count(**asked, instructions="Be brief.")
    assert told.object == "response.input_tokens"
    assert told.input_tokens == first.usage.input_tokens
    whole = await ask(openai)
    after: dict[str, Any] = {"input": "And now?", "previous_response_id": whole.id}
    then = await openai.responses.input_tokens.count(model=MODEL, **after)
    answered = await ask(openai, **after)
    assert then.input_tokens == answered.usage.input_tokens > whole.usage.input_tokens
    row = await row_of(server, then._request_id)  # type: ignore[arg-type]
    assert (row.endpoint, row.operation) == ("/v1/responses/input_tokens", None)
    assert row.outcome == "completed"
    with pytest.raises(sdk.NotFoundError):
        await openai.responses.input_tokens.count(model=MODEL, previous_response_id="resp_no")


async def test_where_a_stream_starts_is_for_streams_only(openai: AsyncOpenAI) -> None:
    response = await ask(openai)
    with pytest.raises(sdk.BadRequestError) as refused:
        await openai.responses.retrieve(response.id, starting_after=3)
    assert refused.value.param == "starting_after"


async def test_only_what_runs_in_the_background_can_be_cancelled(openai: AsyncOpenAI) -> None:
    response = await ask(openai)
    with pytest.raises(sdk.BadRequestError, match="does not run in the background"):
        await openai.responses.cancel(response.id)


async def test_a_client_that_leaves_a_stream_frees_its_place_and_nothing_is_stored(
    openai: AsyncOpenAI, server: RunningServer
) -> None:
    before = server.stored_responses()
    stream = await ask(openai, stream=True, **ENDLESS)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    await eventually(lambda: not is_writing(server))
    assert server.stored_responses() == before


async def test_an_engine_that_dies_in_mid_stream_makes_a_failed_response_that_is_stored(
    tmp_path: Path, model_dir: Path
) -> None:
    with running(create_app(settings_for(tmp_path, model_dir, max_resumes=0))) as server:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            events = list[Any]()
            async for event in await ask(client, stream=True, **ENDLESS):
                if not events:
                    engine = server.resident(TINY).engine
                    assert engine is not None
                    assert engine.pid is not None
                    os.kill(engine.pid, signal.SIGKILL)
                events.append(event)
            failed = events[-1]
            assert failed.type == "response.failed"
            assert failed.sequence_number == len(events) - 1
            assert failed.response.error.code == "server_error"
            stored = await client.responses.retrieve(failed.response.id)
    assert stored.to_dict() == failed.response.to_dict()


async def test_a_request_is_audited_and_traced_like_a_chat(
    openai: AsyncOpenAI, server: RunningServer, spans: Spans
) -> None:
    response = await ask(openai)
    row = await row_of(server, response._request_id)
    assert (row.endpoint, row.operation, row.outcome) == ("/v1/responses", "chat", "completed")
    await server.close_books()
    ids = [
        (span.attributes or {}).get("gen_ai.response.id") for span in spans.named(f"chat {MODEL}")
    ]
    assert response.id in ids


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[0].content[0]"),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"input": 3}, "input"),
        ({"truncation": "auto"}, "truncation"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
    ],
)  # fmt: skip
async def test_what_cannot_be_honoured_is_refused_by_name(
    openai: AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(sdk.BadRequestError) as refused:
        await ask(openai, **fields)
    assert refused.value.param == param


async def test_only_streams_in_the_background_are_read_again(openai: AsyncOpenAI) -> None:
    polled = await ask(openai, background=True)
    await finished(openai, polled.id)
    for response_id in ((await ask(openai)).id, polled.id):
        with pytest.raises(sdk.BadRequestError, match="no stream to read") as refused:
            await openai.responses.retrieve(response_id, stream=True)
        assert refused.value.param == "stream"


async def test_a_number_that_json_does_not_know_is_refused(http: httpx.AsyncClient) -> None:
    tool = '{"type": "function", "name": "f", "parameters": {"const": 1e999}}'
    content = f'{{"model": "{MODEL}", "input": "a", "tools": [{tool}]}}'
    answer = await http.post("/v1/responses", content=content, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"


async def test_text_that_is_no_unicode_is_refused(http: httpx.AsyncClient) -> None:
    tool = {**WEATHER, "parameters": {"type": "object", "description": "\ud800"}}
    for body in (
        {"model": MODEL, "input": "\ud800"},
        {"model": MODEL, "input": "a", "tools": [tool]},
        {"model": MODEL, "input": "a", "stream": True, "metadata": {"a": "\ud800"}},
    ):
        answer = await http.post(
            "/v1/responses",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 400, body


@pytest.fixture
async def keyed(tmp_path: Path, model_dir: Path) -> AsyncIterator[RunningServer]:
    keys = {"api_keys": "ann=ann-has-a-secret,bob=bob-has-another"}
    with running(create_app(settings_for(tmp_path, model_dir, **keys))) as server:
        yield server


async def test_a_response_is_there_for_its_own_key_only(keyed: RunningServer) -> None:
    async with (
        AsyncOpenAI(base_url=f"{keyed.url}/v1", api_key="ann-has-a-secret") as ann,
        AsyncOpenAI(base_url=f"{keyed.url}/v1", api_key="bob-has-another") as bob,
    ):
        response = await ask(ann)
        assert (await ann.responses.retrieve(response.id)).output_text == response.output_text
        assert await ask(ann, previous_response_id=response.id)
        streamed = await events_of(await ask(ann, background=True, stream=True))
        for refused in (
            bob.responses.retrieve(response.id),
            bob.responses.retrieve(streamed[0].response.id, stream=True),
            bob.responses.delete(response.id),
            bob.responses.cancel(response.id),
            bob.responses.input_items.list(response.id),
            ask(bob, previous_response_id=response.id),
            ask(bob, input=[{"type": "item_reference", "id": response.output[0].id}]),
        ):
            with pytest.raises(sdk.NotFoundError):
                await refused


async def test_the_oldest_make_room_when_responses_take_too_much(
    tmp_path: Path, model_dir: Path
) -> None:
    settings = settings_for(tmp_path, model_dir, responses_max_bytes=2**20)
    with running(create_app(settings)) as server:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            # Items that are kept, and that the prompt has none of.
            thought = {"type": "summary_text", "text": "x" * 400_000}
            items = [{"type": "reasoning", "summary": [thought], "id": "rs_1",
                      "content": [{"type": "reasoning_text", "text": "Hm."}]},
                     {"role": "user", "content": "Hi"}]  # fmt: skip
            responses = [await ask(client, input=items) for _ in range(4)]
            kept = server.stored_responses()
    assert responses[-1].id in kept
    assert responses[0].id not in kept
    assert len(kept) == 2


async def test_what_is_too_old_is_forgotten_at_the_next_start(
    tmp_path: Path, model_dir: Path
) -> None:
    settings = settings_for(tmp_path, model_dir)
    with running(create_app(settings)) as server:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            old, new = await ask(client), await ask(client)
    with closing(sqlite3.connect(tmp_path / "server.db")) as database, database:
        database.execute(
            "UPDATE responses SET created_at = datetime('now', '-31 days') WHERE id = ?", [old.id]
        )
    with running(create_app(settings)) as server:
        assert server.stored_responses() == {new.id}


async def test_a_server_that_stops_ends_what_runs_in_the_background_as_failed(
    tmp_path: Path, model_dir: Path
) -> None:
    settings = settings_for(tmp_path, model_dir, shutdown_timeout_s=0)
    with running(create_app(settings)) as server:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            queued = await ask(client, background=True, **ENDLESS)
            stream = await ask(client, background=True, stream=True, **ENDLESS)
            streamed = (await anext(aiter(stream))).response
            await eventually(lambda: is_writing(server))
    with running(create_app(settings)) as server:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            response = await client.responses.retrieve(queued.id)
            events = await again(client, streamed.id)
    assert response.status == "failed"
    assert response.error is not None
    assert "stopped" in response.error.message
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.failed"


async def test_what_a_killed_server_left_unfinished_has_failed_at_the_next_start(
    tmp_path: Path, model_dir: Path
) -> None:
    changes = {"MLX_SERVER_MODEL_DIRS": str(model_dir)}
    with started(tmp_path, "server", **changes) as killed:
        async with AsyncOpenAI(base_url=f"{killed.url}/v1", api_key="none") as client:
            queued = await ask(client, background=True, **ENDLESS)
        killed.process.kill()
        killed.process.wait(30)
    with started(tmp_path, "server", **changes) as server:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            response = await client.responses.retrieve(queued.id)
    assert response.status == "failed"
    assert response.error is not None
    assert "ended before it was done" in response.error.message
