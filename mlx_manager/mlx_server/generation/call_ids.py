"""Ids of earlier calls as templates want them, the same for a call and its result, and the names of results."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count

from mlx_manager.chat.request import Message

Renamed = Callable[[str], str]


def with_names(messages: Iterable[Message]) -> Iterator[Message]:
    """Yield the same with the tool's name in each result that its client gave none."""
    names = dict[str, str]()
    for message in messages:
        names.update((call.id, call.name) for call in message.tool_calls)
        if message.role == "tool" and message.name is None and message.tool_call_id in names:
            message = replace(message, name=names[message.tool_call_id])
        yield message


def with_tools_in_ids(messages: Iterable[Message]) -> Iterator[Message]:
    """Yield the same with ids `functions.NAME:NUMBER`, which is all that the template says of a call's tool."""
    renamed = dict[str, str]()
    for message in messages:
        for call in message.tool_calls:
            renamed[call.id] = f"functions.{call.name}:{len(renamed)}"
        yield _with_ids(message, lambda own: renamed.get(own, own))


def with_ids_of_length(messages: Sequence[Message], length: int) -> Iterator[Message]:
    """Yield the same with ids of `length` letters and digits: those that are so already, and others in their place.

    The same id becomes the same one in every prompt, or the prefix cache would know none of them again.
    """
    own = dict.fromkeys(one for message in messages for one in _ids(message))
    fitting = {one: one for one in own if len(one) == length and one.isascii() and one.isalnum()}
    renamed, taken = dict(fitting), set(fitting)
    for one in own:
        if one not in fitting:
            tries = (_digest(f"{one}{again or ''}")[:length] for again in count())
            renamed[one] = next(new for new in tries if new not in taken)
            taken.add(renamed[one])
    for message in messages:
        yield _with_ids(message, renamed.__getitem__)


def _ids(message: Message) -> Iterator[str]:
    yield from (call.id for call in message.tool_calls)
    if message.tool_call_id is not None:
        yield message.tool_call_id


def _with_ids(message: Message, renamed: Renamed) -> Message:
    calls = tuple(replace(call, id=renamed(call.id)) for call in message.tool_calls)
    of_call = message.tool_call_id
    return replace(
        message, tool_calls=calls, tool_call_id=None if of_call is None else renamed(of_call)
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
