"""Where a model's template says earlier calls and their results, found out by rendering some.

A template may refuse them, all of them or several in one message, or leave them out without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from mlx_manager.chat.request import Message, ToolCall

Turn = dict[str, Any]
# As calls and results, or so with one call in a message; calls as text, or results as text, too.
CallPlace = Literal["own", "one_a_message", "calls_as_text", "all_as_text"]
# The turns for messages at a place, and the text of turns with tools, which may raise whatever a template raises.
Turns = Callable[[tuple[Message, ...], CallPlace], list[Turn]]
Render = Callable[[list[Turn], list[dict[str, Any]] | None], str]

# A template that knows of tools, or of the role of their results.
_RESULTS_PLACE = re.compile(r"""tools|(["'])tool\1""")
_ASKED, _ANSWERED, _ASKED_AGAIN = "user-text-one", "assistant-text-one", "user-text-two"
# With ids that no family has to change.
_CALLS = (
    ToolCall("call00001", "look_at_one", {"at": "argument-one"}),
    ToolCall("call00002", "look_at_two", {"at": "argument-two"}),
)
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": call.name,
            "description": "Looks.",
            "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
        },
    }
    for call in _CALLS
]
_RESULTS = ("result-text-one", "result-text-two")
_CONVERSATION = (
    Message("user", _ASKED),
    Message("assistant", "", tool_calls=_CALLS),
    *(
        Message("tool", said, tool_call_id=call.id)
        for call, said in zip(_CALLS, _RESULTS, strict=True)
    ),
    Message("assistant", _ANSWERED),
    Message("user", _ASKED_AGAIN),
)


def call_places(turns: Turns, render: Render, template: str) -> tuple[CallPlace, CallPlace]:
    """Return where a template says calls and results: where it is given no tools, and where it is given some."""
    without = _call_place(turns, lambda said: render(said, None), template)
    if "tools" not in template:
        return without, without
    return without, _call_place(turns, lambda said: render(said, _TOOLS), template)


def _call_place(turns: Turns, render: Callable[[list[Turn]], str], template: str) -> CallPlace:
    """Return the first place at which everything is said; `own` where it never is, and the template may say why."""
    places: list[CallPlace] = ["own", "one_a_message", "calls_as_text", "all_as_text"]
    if not _RESULTS_PLACE.search(template):
        # It would write the role of a result like any other, which its model has never seen.
        places.remove("calls_as_text")
    return next((one for one in places if _says_all(turns, render, one)), "own")


def _says_all(turns: Turns, render: Callable[[list[Turn]], str], place: CallPlace) -> bool:
    try:
        rendered = render(turns(_CONVERSATION, place))
    except Exception:  # noqa: BLE001 - a template is a program that came with the model
        return False
    begin, end = rendered.find(_ASKED), rendered.rfind(_ANSWERED)
    # Some templates say each result behind its call, others all results behind all calls.
    return 0 <= begin < end < rendered.rfind(_ASKED_AGAIN) and all(
        _are_in_order(rendered[begin:end], (call.name, str(call.arguments["at"]), said))
        for call, said in zip(_CALLS, _RESULTS, strict=True)
    )


def _are_in_order(rendered: str, texts: tuple[str, ...]) -> bool:
    places = list[int]()
    for text in texts:
        places.append(rendered.find(text, places[-1] if places else 0))
    return min(places) >= 0
