"""What programs do with OpenAI's own client: chats, tools, typed answers, responses and what is stored of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_manager.conformance.recorded import USER
from mlx_manager.conformance.sdks import OPENAI, Place, imported, openai_check
from mlx_manager.conformance.subject import MAX_TOKENS, NotApplicable, expect
from mlx_manager.conformance.words import COUNT_TO_TEN, QUESTION, WEATHER, check_arguments

if TYPE_CHECKING:
    from openai import AsyncOpenAI

COUNTING: Any = [{"role": "user", "content": COUNT_TO_TEN}]
ASKED: Any = [USER]
FLAT_WEATHER: Any = {"type": "function", "strict": False, **WEATHER["function"]}
ROOM = 200
# More than is written before its client has said that it has changed its mind.
ENDLESS = 100_000


async def models(client: AsyncOpenAI, model: str) -> str:
    """The list of models can be gone through, and one be asked for by its id."""
    listed = [one.id async for one in client.models.list()]
    expect(model in listed, "the model is not in the list")
    expect((await client.models.retrieve(model)).id == model, "another model")
    return f"{OPENAI} {imported(OPENAI).__version__}"


async def chat(client: AsyncOpenAI, model: str) -> None:
    """A streamed chat, put together by the client, is what a whole one is."""
    asked: dict[str, Any] = {"model": model, "messages": COUNTING, "temperature": 0}
    whole = await client.chat.completions.create(**asked, max_tokens=MAX_TOKENS)
    stream = await client.chat.completions.create(
        **asked, max_tokens=MAX_TOKENS, stream=True, stream_options={"include_usage": True}
    )
    text, reason, usage = "", None, None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    [choice] = whole.choices
    expect(text == (choice.message.content or ""), "the stream says something else")
    expect(reason == choice.finish_reason, f"it ends with {reason!r}")
    expect(usage is not None and whole.usage is not None, "tokens are not counted")
    assert usage is not None
    assert whole.usage is not None
    expect(usage.completion_tokens == whole.usage.completion_tokens, "other tokens are counted")


async def tools(client: AsyncOpenAI, model: str) -> None:
    """A call that must be made is made; with its result behind the message as it came, it is answered."""
    asked: dict[str, Any] = {"model": model, "tools": [WEATHER], "temperature": 0}
    first = await client.chat.completions.create(
        **asked, messages=ASKED, tool_choice="required", max_tokens=ROOM
    )
    [choice] = first.choices
    if choice.finish_reason == "length":
        raise NotApplicable("the model did not come to an end within max_tokens")
    call: Any = (choice.message.tool_calls or [None])[0]
    expect(call is not None and call.function.name == "get_weather", f"it calls {call}")
    check_arguments(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"}
    messages: Any = [*ASKED, choice.message, result]
    second = await client.chat.completions.create(**asked, messages=messages, max_tokens=16)
    expect(len(second.choices) == 1, "no answer")


async def parsed(client: AsyncOpenAI, model: str) -> None:
    """`parse` gives a typed answer, whole and streamed."""
    asked: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Which place?"}],
        "response_format": Place,
        "reasoning_effort": "none",
        "max_tokens": ROOM,
    }
    whole = await client.chat.completions.parse(**asked)
    expect(isinstance(whole.choices[0].message.parsed, Place), "nothing is parsed")
    async with client.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()
    expect(isinstance(final.choices[0].message.parsed, Place), "nothing is parsed of the stream")


async def text(client: AsyncOpenAI, model: str) -> None:
    """A text completion has as many choices as are asked for, in order."""
    made = await client.completions.create(
        model=model, prompt="Once upon a time", n=2, max_tokens=8, seed=1
    )
    expect([choice.index for choice in made.choices] == [0, 1], "not two choices in order")


async def response(client: AsyncOpenAI, model: str) -> None:
    """A streamed response, put together by the client, is what a whole one is."""
    asked: dict[str, Any] = {
        "model": model,
        "input": COUNT_TO_TEN,
        "temperature": 0,
        "store": False,
        "max_output_tokens": MAX_TOKENS,
    }
    whole = await client.responses.create(**asked)
    async with client.responses.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response() if kinds[-1] == "response.completed" else None
    expect(kinds[:2] == ["response.created", "response.in_progress"], f"it begins {kinds[:2]}")
    expect(kinds[-1] == f"response.{whole.status}", f"it ends with {kinds[-1]!r}")
    if final is not None:
        expect(final.output_text == whole.output_text, "the stream says something else")


async def response_tools(client: AsyncOpenAI, model: str) -> None:
    """A call's result can be sent back with the items of the output as they came, and is answered."""
    asked: dict[str, Any] = {"model": model, "tools": [FLAT_WEATHER], "temperature": 0}
    first = await client.responses.create(
        **asked, input=QUESTION, tool_choice="required", max_output_tokens=ROOM, store=False
    )
    if first.status != "completed":
        raise NotApplicable("the model did not come to an end within max_output_tokens")
    [call, *_] = [item for item in first.output if item.type == "function_call"]
    check_arguments(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    sent_back: Any = [*ASKED, *first.output, result]
    second = await client.responses.create(
        **asked, input=sent_back, max_output_tokens=16, store=False
    )
    expect(second.status in ("completed", "incomplete"), f"it is {second.status!r}")


async def response_parsed(client: AsyncOpenAI, model: str) -> None:
    """`parse` gives a typed answer."""
    made = await client.responses.parse(
        model=model,
        input="Which place?",
        text_format=Place,
        reasoning={"effort": "none"},
        max_output_tokens=ROOM,
        store=False,
    )
    expect(isinstance(made.output_parsed, Place), "nothing is parsed")


async def stored(client: AsyncOpenAI, model: str) -> None:
    """A stored response can be gone on from, retrieved with what it was asked, and deleted."""
    sdk = imported(OPENAI)
    first = await client.responses.create(model=model, input="Hello", max_output_tokens=16)
    second = await client.responses.create(
        model=model, input="And now?", previous_response_id=first.id, max_output_tokens=16
    )
    expect(second.previous_response_id == first.id, "it does not say what it goes on from")
    again = await client.responses.retrieve(first.id)
    expect(again.output == first.output, "it is kept as something else")
    items = [item async for item in client.responses.input_items.list(second.id)]
    expect(len(items) == 1, f"its own request brought {len(items)} items")
    for one in (second, first):
        await client.responses.delete(one.id)
    try:
        await client.responses.retrieve(first.id)
    except sdk.NotFoundError:
        return
    expect(False, "it is there after it was deleted")


async def background(client: AsyncOpenAI, model: str) -> str | None:
    """A response in the background is there at once, and can be cancelled."""
    begun = await client.responses.create(
        model=model,
        input=COUNT_TO_TEN,
        background=True,
        max_output_tokens=ENDLESS,
        extra_body={"ignore_eos": True},
    )
    try:
        expect(begun.status in ("queued", "in_progress"), f"it begins as {begun.status!r}")
        ended = await client.responses.cancel(begun.id)
        if ended.status in ("completed", "incomplete"):
            return "it was over before it could be cancelled"
        expect(ended.status == "cancelled", f"it is {ended.status!r}")
        kept = await client.responses.retrieve(begun.id)
        expect(kept.status == "cancelled", f"it is kept as {kept.status!r}")
    finally:
        await client.responses.delete(begun.id)
    return None


async def counted(client: AsyncOpenAI, model: str) -> None:
    """The tokens of a response's prompt can be counted before."""
    asked: dict[str, Any] = {"model": model, "input": QUESTION, "tools": [FLAT_WEATHER]}
    counted = await client.responses.input_tokens.count(**asked)
    made = await client.responses.create(**asked, max_output_tokens=16, store=False)
    used = made.usage.input_tokens if made.usage else None
    expect(counted.input_tokens == used, f"{counted.input_tokens} are counted, and {used} read")


async def refused(client: AsyncOpenAI, model: str) -> None:
    """What is refused is the client's own class of error, with code and parameter."""
    sdk = imported(OPENAI)
    asked: dict[str, Any] = {"messages": COUNTING, "max_tokens": 1}
    try:
        await client.chat.completions.create(model="nobody/nothing", **asked)
    except sdk.NotFoundError as error:
        expect(error.code == "model_not_found", f"code is {error.code!r}")
    else:
        expect(False, "a model that isn't there answers")
    try:
        await client.chat.completions.create(model=model, **asked, temperature=9)
    except sdk.BadRequestError as error:
        expect(error.param == "temperature", f"param is {error.param!r}")
    else:
        expect(False, "a temperature of 9 is taken")


async def vectors(client: AsyncOpenAI, model: str) -> str | None:
    """Each input has a vector, in order, as numbers and in base64; a model of chats is refused as such."""
    sdk = imported(OPENAI)
    asked: dict[str, Any] = {"model": model, "input": ["one", "two"]}
    try:
        made = await client.embeddings.create(**asked, encoding_format="float")
    except sdk.BadRequestError as error:
        expect(error.code == "wrong_model_kind", f"a model of chats is refused with {error.code!r}")
        return "refused: the model makes text"
    expect([one.index for one in made.data] == [0, 1], "not one vector for each, in order")
    # Left to itself the client asks for base64, which it reads, but its own type has no place for.
    lenient = client.with_options(_extra_kwargs={"_strict_response_validation": False})
    packed = await lenient.embeddings.create(**asked)
    pairs = zip(made.data[0].embedding, packed.data[0].embedding, strict=True)
    expect(all(abs(one - other) < 1e-6 for one, other in pairs), "base64 says something else")
    return None


OPENAI_SDK_CHECKS = (
    openai_check("chat", "whole and streamed", chat),
    openai_check("chat", "typed answer", parsed),
    openai_check("tools", "called and answered", tools),
    openai_check("text", "two choices", text),
    openai_check("responses", "whole and streamed", response),
    openai_check("responses", "called and answered", response_tools),
    openai_check("responses", "typed answer", response_parsed),
    openai_check("responses", "gone on from, kept, deleted", stored),
    openai_check("responses", "background, cancelled", background),
    openai_check("responses", "input_tokens", counted),
    openai_check("errors", "the client's classes", refused),
)
OPENAI_SDK_COMMON_CHECKS = (
    openai_check("embeddings", "vectors", vectors),
    openai_check("models", "listed, retrieved", models),
)
