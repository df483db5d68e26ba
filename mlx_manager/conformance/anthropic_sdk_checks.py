"""What programs do with Anthropic's own client: messages whole and streamed, tools, typed answers, counting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_manager.conformance.recorded import USER
from mlx_manager.conformance.sdks import ANTHROPIC, Place, anthropic_check, imported
from mlx_manager.conformance.subject import MAX_TOKENS, NotApplicable, expect
from mlx_manager.conformance.words import COUNT_TO_TEN, WEATHER_TOOL

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

COUNTING: Any = [{"role": "user", "content": COUNT_TO_TEN}]
ASKED: Any = [USER]
TOOLS: Any = [WEATHER_TOOL]
# Today's client has no argument for it, and sends it all the same.
GREEDY = {"temperature": 0}
ROOM = 200


async def models(client: AsyncAnthropic, model: str) -> str:
    """The list of models can be gone through, page by page, and one be asked for by its id."""
    listed = [one.id async for one in client.models.list(limit=2)]
    expect(model in listed, "the model is not in the list")
    expect((await client.models.retrieve(model)).id == model, "another model")
    return f"{ANTHROPIC} {imported(ANTHROPIC).__version__}"


async def message(client: AsyncAnthropic, model: str) -> None:
    """A streamed message, put together by the client, is what a whole one is."""
    asked: dict[str, Any] = {"model": model, "messages": COUNTING, "max_tokens": MAX_TOKENS}
    whole = await client.messages.create(**asked, extra_body=GREEDY)
    async with client.messages.stream(**asked, extra_body=GREEDY) as stream:
        final = await stream.get_final_message()
    expect(_text(final) == _text(whole), "the stream says something else")
    expect(final.stop_reason == whole.stop_reason, f"it ends with {final.stop_reason!r}")
    expect(final.usage.output_tokens == whole.usage.output_tokens, "other tokens are counted")


async def tools(client: AsyncAnthropic, model: str) -> None:
    """A tool that must be used is used; with its result behind the message as it came, it is answered."""
    asked: dict[str, Any] = {"model": model, "tools": TOOLS, "extra_body": GREEDY}
    first = await client.messages.create(
        **asked, messages=ASKED, tool_choice={"type": "any"}, max_tokens=ROOM
    )
    if first.stop_reason == "max_tokens":
        raise NotApplicable("the model did not come to an end within max_tokens")
    [use, *_] = [block for block in first.content if block.type == "tool_use"]
    expect(use.name == "get_weather" and isinstance(use.input, dict), f"it uses {use}")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny, 21 degrees"}
    turns: Any = [
        *ASKED,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    second = await client.messages.create(**asked, messages=turns, max_tokens=16)
    expect(second.stop_reason is not None, "no answer")


async def runner(client: AsyncAnthropic, model: str) -> str | None:
    """The client's own loop calls tools and goes on with what they say, with a thread on the server or without."""
    cities = list[str]()

    async def get_weather(city: str) -> str:
        """Get the weather of a place."""
        cities.append(city)
        return "sunny, 21 degrees"

    tool = imported(ANTHROPIC).beta_async_tool(get_weather)
    turns = client.beta.messages.tool_runner(
        model=model, messages=ASKED, tools=[tool], max_tokens=ROOM, max_iterations=2
    )
    reasons = [turn.stop_reason async for turn in turns]
    expect(None not in reasons and len(reasons) > 0, f"turns end with {reasons}")
    if "tool_use" not in reasons:
        return "the model used no tool"
    expect(bool(cities), "its tool was not run")
    return None


async def thinking(client: AsyncAnthropic, model: str) -> str | None:
    """Thinking comes signed, streamed too, and can be sent back."""
    asked: dict[str, Any] = {
        "model": model,
        "max_tokens": ROOM,
        "extra_body": GREEDY,
        "thinking": {"type": "adaptive"},
    }
    async with client.messages.stream(**asked, messages=ASKED) as stream:
        first = await stream.get_final_message()
    thoughts = [block for block in first.content if block.type == "thinking"]
    if not thoughts:
        return "the model did not think"
    expect(all(block.thinking and block.signature for block in thoughts), "not signed")
    turns: Any = [
        *ASKED,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": "And in Oslo?"},
    ]
    again = await client.messages.create(**asked | {"max_tokens": 16}, messages=turns)
    expect(again.stop_reason is not None, "no answer")
    return None


async def parsed(client: AsyncAnthropic, model: str) -> None:
    """`parse` gives a typed answer."""
    made = await client.messages.parse(
        model=model,
        messages=[{"role": "user", "content": "Which place?"}],
        output_format=Place,
        thinking={"type": "disabled"},
        max_tokens=ROOM,
    )
    expect(isinstance(made.parsed_output, Place), "nothing is parsed")


async def counted(client: AsyncAnthropic, model: str) -> None:
    """The tokens of a message's prompt can be counted before."""
    asked: dict[str, Any] = {"model": model, "messages": ASKED, "tools": TOOLS, "system": "Hi"}
    counted = (await client.messages.count_tokens(**asked)).input_tokens
    usage = (await client.messages.create(**asked, max_tokens=1)).usage
    used = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    expect(counted == used, f"{counted} tokens are counted, and {used} were read")


async def refused(client: AsyncAnthropic, model: str) -> None:
    """What is refused is the client's own class of error, with its type."""
    sdk = imported(ANTHROPIC)
    asked: dict[str, Any] = {"messages": COUNTING, "max_tokens": 1}
    try:
        await client.messages.create(model="nobody/nothing", **asked)
    except sdk.NotFoundError as error:
        expect(error.type == "not_found_error", f"type is {error.type!r}")
    else:
        expect(False, "a model that isn't there answers")
    try:
        await client.messages.create(model=model, **asked, extra_body={"temperature": 9})
    except sdk.BadRequestError as error:
        expect(error.type == "invalid_request_error", f"type is {error.type!r}")
    else:
        expect(False, "a temperature of 9 is taken")


def _text(message: Any) -> str:
    """What a message says in its text blocks."""
    return "".join(block.text for block in message.content if block.type == "text")


ANTHROPIC_SDK_CHECKS = (
    anthropic_check("messages", "whole and streamed", message),
    anthropic_check("messages", "used and answered", tools),
    anthropic_check("messages", "the client's tool runner", runner),
    anthropic_check("messages", "thinking, signed", thinking),
    anthropic_check("messages", "typed answer", parsed),
    anthropic_check("messages", "count_tokens", counted),
    anthropic_check("errors", "the client's classes", refused),
)
ANTHROPIC_SDK_COMMON_CHECKS = (anthropic_check("models", "listed, retrieved", models),)
