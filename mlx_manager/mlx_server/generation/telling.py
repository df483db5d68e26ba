"""How a model's template is told of earlier calls and their results, found out by rendering some.

A template may refuse them, all of them or several in one message, leave them out without a word, or write what no model
has written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlx_manager.chat.request import Message, ToolCall

Turn = dict[str, Any]
# As calls and results, or so with one call in a message; calls as text, or results as text, too.
CallPlace = Literal["own", "one_a_message", "calls_as_text", "all_as_text"]
# What a user says right behind results: there, behind an empty answer, or as part of the last result.
NextUser = Literal["there", "behind_an_answer", "in_the_result"]


@dataclass(frozen=True, slots=True)
class Telling:
    """Where calls and results stand, and what the user says next; whether arguments are text, and not an object.

    What is said beside calls `is_apart` from them where it stands in a message before theirs.
    """

    place: CallPlace = "own"
    arguments_as_text: bool = False
    is_apart: bool = False
    next_user: NextUser = "there"


# The turns for messages told so, and the text of turns with tools, which may raise whatever a template raises.
Turns = Callable[[tuple[Message, ...], Telling], list[Turn]]
Render = Callable[[list[Turn], list[dict[str, Any]] | None], str]

# A template that knows of tools, or of the role of their results.
_RESULTS_PLACE = re.compile(r"""tools|(["'])tool\1""")
_ASKED, _BESIDE, _ANSWERED, _NEXT = (
    "user-text-one",
    "text-beside",
    "assistant-text",
    "user-text-two",
)
# With ids that no family has to change.
_CALLS = (
    ToolCall("call00001", "look_at_one", {"at": "argument-one"}),
    ToolCall("call00002", "look_at_two", {"at": "argument-two"}),
)
_SAID = ("result-text-one", "result-text-two")
# What an object becomes where the template wants a text, and a text where it wants an object.
_NOT_JSON = re.compile(r"""\{'at': 'argument|\\"argument""")
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": call.name,
            "description": "Looks.",
            "parameters": {
                "type": "object",
                "properties": {"at": {"type": "string", "description": "What."}},
                "required": ["at"],
            },
        },
    }
    for call in _CALLS
]
_USER, _CALLED, _LAST = (
    Message("user", _ASKED),
    Message("assistant", "", tool_calls=_CALLS),
    Message("user", _NEXT),
)
_RESULTS = tuple(
    Message("tool", said, tool_call_id=call.id) for call, said in zip(_CALLS, _SAID, strict=True)
)
_ANSWER = Message("assistant", _ANSWERED)
_PLAIN = (_USER, _CALLED, *_RESULTS, _ANSWER, _LAST)
_WITH_TEXT = (_USER, replace(_CALLED, content=_BESIDE), *_RESULTS, _ANSWER, _LAST)
_WITHOUT_ANSWER = (_USER, _CALLED, *_RESULTS, _LAST)


def tellings(turns: Turns, render: Render, template: str) -> tuple[Telling, Telling]:
    """Return how a template is told of calls: where it is given no tools, and where it is given some."""
    without = _telling(_Template(turns, render, None), template)
    if "tools" not in template:
        return without, without
    return without, _telling(_Template(turns, render, _TOOLS), template)


def _telling(template: _Template, source: str) -> Telling:
    """Return the first telling of which a template leaves nothing out; its own where it always does, or refuses."""
    found = template.first_that_says(_PLAIN, (), _places(source)) or Telling()
    apart = (replace(found, is_apart=is_apart) for is_apart in (False, True))
    found = template.first_that_says(_WITH_TEXT, (_BESIDE,), apart) or found
    places: tuple[NextUser, ...] = ("there", "behind_an_answer", "in_the_result")
    following = (replace(found, next_user=place) for place in places)
    return template.first_that_says(_WITHOUT_ANSWER, (), following) or found


def _places(source: str) -> Iterable[Telling]:
    own: tuple[CallPlace, ...] = ("own", "one_a_message")
    for place in own:
        yield Telling(place)
        yield Telling(place, arguments_as_text=True)
    # Without a place for results their role would be written like any other, and the model has never seen it.
    if _RESULTS_PLACE.search(source):
        yield Telling("calls_as_text")
    yield Telling("all_as_text")


@dataclass(frozen=True, slots=True)
class _Template:
    turns: Turns
    render: Render
    tools: list[dict[str, Any]] | None

    def first_that_says(
        self, said: tuple[Message, ...], beside: Sequence[str], some: Iterable[Telling]
    ) -> Telling | None:
        """Return the first of some tellings with which the template says everything."""
        return next((one for one in some if self._says(said, beside, one)), None)

    def _says(self, said: tuple[Message, ...], beside: Sequence[str], telling: Telling) -> bool:
        try:
            rendered = self.render(self.turns(said, telling), self.tools)
        except Exception:  # noqa: BLE001 - a template is a program that came with the model
            return False
        begin, end = rendered.find(_ASKED), rendered.rfind(_ANSWERED if _ANSWER in said else _NEXT)
        between = rendered[begin:end]
        return (
            0 <= begin < end <= rendered.rfind(_NEXT)
            and all(text in between for text in beside)
            and _NOT_JSON.search(between) is None
            and _has_calls(between)
        )


def _has_calls(between: str) -> bool:
    """Whether calls and their results stand there: each behind its call, or all behind all."""
    return all(
        _are_in_order(between, (call.name, str(call.arguments["at"]), said))
        for call, said in zip(_CALLS, _SAID, strict=True)
    )


def _are_in_order(rendered: str, texts: tuple[str, ...]) -> bool:
    places = list[int]()
    for text in texts:
        places.append(rendered.find(text, places[-1] if places else 0))
    return min(places) >= 0
