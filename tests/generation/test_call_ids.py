"""Ids of earlier calls, and the names of their results, as templates want them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlx_manager.chat.request import Conversation, Message, ToolCall
from mlx_manager.mlx_server.families.family import family_of
from mlx_manager.mlx_server.generation.call_ids import with_ids_of_length, with_names
from mlx_manager.mlx_server.generation.model_text import load_model_text
from mlx_manager.mlx_server.generation.template_messages import template_messages
from mlx_manager.mlx_server.pool.catalog import ModelFiles

LONG = "toolu_01A09q90qw90lq917835lq9", "call_2f9b1c6d7e8f4a5b"
# As Mistral's templates refuse ids of other lengths.
MISTRAL = (
    "{% macro checked(id) %}{% if id is undefined or id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{% endif %}{{ id }}{% endmacro %}"
    "{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS]{% for c in m.tool_calls %}"
    "{{ checked(c.id) }} {{ c.function.name }} {{ c.function.arguments }} {% endfor %}</s>"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ checked(m.tool_call_id) }} {{ m.content }}[/TOOL_RESULTS]"
    "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)


def called(*ids: str) -> tuple[Message, ...]:
    """A question, one call of each id, and their results in the other order."""
    calls = tuple(ToolCall(one, f"look_{number}", {}) for number, one in enumerate(ids))
    results = [Message("tool", one.name, tool_call_id=one.id) for one in calls]
    return (
        Message("user", "Hi"),
        Message("assistant", "", tool_calls=calls),
        *reversed(results),
    )


def ids_of(messages: tuple[Message, ...], length: int = 9) -> dict[str, str]:
    """Which id each of the ids became, of calls and results alike."""
    became = dict[str, str]()
    for before, after in zip(messages, with_ids_of_length(messages, length), strict=True):
        pairs = zip(before.tool_calls, after.tool_calls, strict=True)
        found = [(old.id, new.id) for old, new in pairs]
        if before.tool_call_id is not None:
            assert after.tool_call_id is not None
            found.append((before.tool_call_id, after.tool_call_id))
        for old, new in found:
            assert became.setdefault(old, new) == new, "a call and its result are the same one"
    return became


@pytest.mark.parametrize("ids", [LONG, ("1", "2"), ("é" * 9, "a-b-c-d-e"), ("", "\ud800")])
def test_ids_of_another_length_become_others_of_that_length_that_stay_apart(
    ids: tuple[str, ...],
) -> None:
    became = ids_of(called(*ids))
    assert set(became) == set(ids)
    assert len(set(became.values())) == len(ids)
    for one in became.values():
        assert len(one) == 9
        assert one.isascii()
        assert one.isalnum()


def test_an_id_becomes_the_same_one_whatever_stands_beside_it() -> None:
    assert ids_of(called(LONG[0])) == {LONG[0]: ids_of(called("x", *reversed(LONG)))[LONG[0]]}


def test_ids_that_fit_stay_as_they_are_and_no_other_becomes_one_of_them() -> None:
    (taken,) = ids_of(called(LONG[0])).values()
    became = ids_of(called(LONG[0], taken))
    assert became[taken] == taken
    assert became[LONG[0]] != taken


def test_a_result_without_a_name_has_that_of_its_call() -> None:
    asked, made, second, first = called(*LONG)
    own = Message("tool", "x", name="mine", tool_call_id=LONG[0])
    stray = Message("tool", "x", tool_call_id="nobody's")
    named = list(with_names((asked, made, second, first, own, stray)))
    assert [one.name for one in named] == [None, None, "look_1", "look_0", "mine", None]


def test_an_id_that_is_used_again_means_the_latest_call() -> None:
    again = Message("assistant", "", tool_calls=(ToolCall(LONG[0], "wait", {}),))
    *_, last = with_names((*called(LONG[0]), again, Message("tool", "", tool_call_id=LONG[0])))
    assert last.name == "wait"


def test_templates_are_given_the_name_of_a_result() -> None:
    turns = template_messages(called(*LONG), family_of("<tool_call>"))
    assert [turn.get("name") for turn in turns] == [None, None, "look_1", "look_0"]


def test_a_template_that_refuses_ids_of_another_length_takes_them_from_every_client(
    model_dir: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(model_dir / "test" / "tiny", tmp_path / "model")
    (path / "chat_template.jinja").write_text(MISTRAL)
    text = load_model_text(ModelFiles("test/model", path, "folder", 0))
    first, second = ids_of(called(*LONG)).values()
    assert text.render(Conversation(called(*LONG))) == (
        f"[INST]Hi[/INST][TOOL_CALLS]{first} look_0 {{}} {second} look_1 {{}} </s>"
        f"[TOOL_RESULTS]{second} look_1[/TOOL_RESULTS][TOOL_RESULTS]{first} look_0[/TOOL_RESULTS]"
    )
