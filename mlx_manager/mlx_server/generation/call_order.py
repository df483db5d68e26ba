"""Messages with calls and results in another order, or in more messages, for templates that take no other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from mlx_manager.chat.request import Message
from mlx_manager.mlx_server.generation.call_text import BLANK_LINE


def with_text_apart(messages: Iterable[Message]) -> Iterator[Message]:
    """Yield the same with what was said beside calls in a message before them."""
    for message in messages:
        if message.tool_calls and message.content:
            yield replace(message, tool_calls=(), reasoning=None)
            message = replace(message, content="")
        yield message


def with_empty_answers(messages: Iterable[Message]) -> Iterator[Message]:
    """Yield the same with an answer between results and what the user says next."""
    behind_results = False
    for message in messages:
        if behind_results and message.role == "user":
            yield Message("assistant", "")
        if message.role != "system":
            behind_results = message.role == "tool"
        yield message


def with_user_in_results(messages: Iterable[Message]) -> list[Message]:
    """Return the same with what the user says next behind results as a part of the last of them."""
    told = list[Message]()
    # Where the last turn stands that somebody else than the system has taken.
    last: int | None = None
    for message in messages:
        if message.role == "user" and last is not None and told[last].role == "tool":
            content = f"{told[last].content}{BLANK_LINE}{message.content}"
            told[last] = replace(told[last], content=content)
            continue
        if message.role != "system":
            last = len(told)
        told.append(message)
    return told


def with_one_call_each(messages: Sequence[Message]) -> Iterator[Message]:
    """Yield the same with a message for each call, before its result; what was said beside calls comes first."""
    at = 0
    while at < len(messages):
        message = messages[at]
        results = list(takewhile(lambda one: one.role == "tool", messages[at + 1 :]))
        at += 1
        if message.tool_calls and message.content and message.reasoning:
            # One of them would have no place.
            yield replace(message, tool_calls=(), reasoning=None)
            message = replace(message, content="")
        if len(message.tool_calls) < 2:
            yield message
        else:
            at += len(results)
            yield from _one_by_one(message, results)


def _one_by_one(message: Message, results: list[Message]) -> Iterator[Message]:
    for number, call in enumerate(message.tool_calls):
        own = [one for one in results if one.tool_call_id == call.id]
        yield (
            replace(message, tool_calls=(call,))
            if number == 0
            else Message("assistant", "", tool_calls=(call,))
        )
        yield from own
        results = [one for one in results if one not in own]
    yield from results
