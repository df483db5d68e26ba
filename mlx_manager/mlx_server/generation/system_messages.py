"""System messages where a model's template has a place for them: some have one for the first only, some for none.

Clients send several, and later ones in the middle of a conversation. A template that can't say them refuses them or, as
bad, leaves them out, so what it can do is found out by rendering.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

Turn = dict[str, Any]
Render = Callable[[list[Turn]], str]
# Where a template says them: wherever they stand, the first one at the beginning, or as a part of a user's turn.
SystemPlace = Literal["anywhere", "first", "user"]

_FIRST, _SECOND, _LATE = "system-text-one", "system-text-two", "system-text-three"
_ASKED, _ANSWERED, _ASKED_AGAIN = "user-text-one", "assistant-text-one", "user-text-two"
_SEVERAL = [
    ("system", _FIRST),
    ("system", _SECOND),
    ("user", _ASKED),
    ("assistant", _ANSWERED),
    ("system", _LATE),
    ("user", _ASKED_AGAIN),
]


def system_place(render: Render) -> SystemPlace:
    """Return where a template says system messages; `render` may raise whatever a template raises."""
    if _says_in_order(render, _SEVERAL):
        return "anywhere"
    return "first" if _says_in_order(render, [_SEVERAL[0], _SEVERAL[2]]) else "user"


def placed(turns: list[Turn], place: SystemPlace) -> list[Turn]:
    """Return the turns with all system messages in one at the beginning, or in the first user's turn."""
    own = [turn for turn in turns if turn["role"] == "system"]
    if place == "anywhere" or not own:
        return turns
    if place == "first" and own == turns[:1]:
        return turns
    text = "\n\n".join(turn["content"] for turn in own if turn["content"])
    others = _joined([turn for turn in turns if turn["role"] != "system"])
    if place == "first":
        return [{"role": "system", "content": text}, *others]
    if others and others[0]["role"] == "user":
        return [_with_text(others[0], f"{text}\n\n{others[0]['content']}"), *others[1:]]
    return [{"role": "user", "content": text}, *others]


def _joined(turns: list[Turn]) -> list[Turn]:
    """Return the turns with those of the user that stand side by side now in one: templates may ask for turns."""
    joined = list[Turn]()
    for turn in turns:
        if joined and turn["role"] == joined[-1]["role"] == "user":
            joined[-1] = _with_text(joined[-1], f"{joined[-1]['content']}\n\n{turn['content']}")
        else:
            joined.append(turn)
    return joined


def _with_text(turn: Turn, text: str) -> Turn:
    return turn | {"content": text}


def _says_in_order(render: Render, said: list[tuple[str, str]]) -> bool:
    try:
        rendered = render([{"role": role, "content": text} for role, text in said])
    except Exception:  # noqa: BLE001 - a template is a program that came with the model
        return False
    places = [rendered.find(text) for _, text in said]
    return min(places) >= 0 and places == sorted(places)
