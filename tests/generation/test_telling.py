"""Earlier calls and their results reach every model, whatever its template has a place for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from openai import OpenAI

from mlx_manager.chat.events import TextDelta, ToolCallDelta, ToolCallStarted
from mlx_manager.chat.request import Conversation, Message, Tool, ToolCall
from mlx_manager.mlx_server.app import create_app
from mlx_manager.mlx_server.families.messages import answer_parser
from mlx_manager.mlx_server.generation.model_text import ModelText
from mlx_manager.mlx_server.generation.telling import CallPlace
from tests.generation.templates import text_with
from tests.support.running import RunningServer, running, settings_for

GENERATION = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CALLS = (
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
)
OWN = (
    "{# tools #}{% for m in messages %}"
    + TURN.replace("<|im_end|>", CALLS + "<|im_end|>")
    + "{% endfor %}"
    + GENERATION
)
# As Llama's 3.1 does.
ONE_ONLY = (
    "{# tools #}{% for m in messages %}{% if m.tool_calls and m.tool_calls | length > 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    + OWN.partition("{% for m in messages %}")[2]
)
# As gpt-oss's writes the first and says nothing of the others.
FIRST_ONLY = OWN.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
# As LFM2's knows tools and their results, and says no call.
NO_CALLS = "{{ tools }}{% for m in messages %}" + TURN + "{% endfor %}" + GENERATION
# As Granite's 3.0 knows tools, and roles of its own for calls and results.
NO_RESULTS = (
    "{{ tools }}{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    + TURN
    + "{% endif %}{% endfor %}"
    + GENERATION
)
# As DeepSeek's V3 says calls of messages that have no content, not even an empty one.
NO_CONTENT = OWN.replace("m.tool_calls or []", "(m.tool_calls if m.content is none else [])")
# As Gemma's 3 wants user and assistant in turns, and nobody else.
TURNS_ONLY = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}" + TURN + "{% endfor %}" + GENERATION
)
NO_PLACE = "{% for m in messages %}" + TURN + "{% endfor %}" + GENERATION
REFUSES_ALL = "{{ raise_exception('no') }}"
PLACES: dict[str, tuple[str, CallPlace]] = {
    "says all": (OWN, "own"),
    "refuses several": (ONE_ONLY, "one_a_message"),
    "says the first": (FIRST_ONLY, "one_a_message"),
    "says no calls": (NO_CALLS, "calls_as_text"),
    "says calls without content": (NO_CONTENT, "calls_as_text"),
    "says no results": (NO_RESULTS, "all_as_text"),
    "wants turns": (TURNS_ONLY, "all_as_text"),
    "knows no tools": (NO_PLACE, "all_as_text"),
    "refuses everything": (REFUSES_ALL, "own"),
}
LOOK = Tool("look", "Looks", {"type": "object", "properties": {"at": {"type": "string"}}})
MADE = (ToolCall("c1", "look", {"at": "cats"}), ToolCall("c2", "look", {"at": "dogs"}))
RESULTS = (
    Message("tool", "three cats", tool_call_id="c1"),
    Message("tool", "no dogs", tool_call_id="c2"),
)
SAID = (
    Message("system", "Be kind."),
    Message("user", "What is there?"),
    Message("assistant", "I look.", tool_calls=MADE),
    *RESULTS,
    Message("user", "Quick!"),
    Message("assistant", "Three cats."),
    Message("user", "And now?"),
    Message("assistant", "", tool_calls=MADE[:1]),
    RESULTS[0],
)
SIGNS = {
    "hermes": "",
    "lfm2": "<|tool_call_start|>",
    "gemma3": "<start_of_turn>",
    "qwen3-coder": "<tool_call><function=",
    "deepseek-v3.2": "｜DSML｜",
}


# Arguments put together with texts, as DeepSeek's V3 does, shown as they are, and made JSON of.
TAKES_TEXT = OWN.replace(
    "{{ c.function | tojson }}", "{{ c.function.name + ' ' + c.function.arguments }}"
)
SHOWS_THEM = TAKES_TEXT.replace("+ ' ' + c.function.arguments", "}} {{ c.function.arguments")
TAKES_OBJECT = SHOWS_THEM.replace("c.function.arguments", "c.function.arguments | tojson")
# As Llama's says nothing of what stands beside calls.
NO_TEXT = OWN.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}")
# As Mistral's wants user and assistant in turns, calls and results apart.
OTHERS_IN_TURNS = (
    "{% set n = namespace(turns=0) %}{% for m in messages %}{% if m.role != 'tool' and not m.tool_calls %}"
    "{% if (m.role == 'user') != (n.turns % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "{% set n.turns = n.turns + 1 %}{% endif %}{% endfor %}" + OWN
)
NEVER_EMPTY = OTHERS_IN_TURNS.replace(
    "{% set n.turns",
    "{% if not m.content %}{{ raise_exception('must have content') }}{% endif %}{% set n.turns",
)


def turns_of(rendered: str) -> list[tuple[str, str]]:
    """Roles and contents of what was rendered, without the turn that is to come."""
    parts = [one.partition("\n") for one in rendered.split("<|im_start|>")[1:-1]]
    return [(role, content.removesuffix("<|im_end|>\n")) for role, _, content in parts]


def read(text: ModelText, answer: str) -> tuple[str, list[tuple[str, str]]]:
    """What an answer says, and its calls with their arguments as they were written."""
    parser = answer_parser(text.family, (LOOK,))
    deltas = parser.feed(answer) + parser.finish()
    names = [one.name for one in deltas if isinstance(one, ToolCallStarted)]
    written = [""] * len(names)
    for one in deltas:
        if isinstance(one, ToolCallDelta):
            written[one.index] += one.arguments
    said = "".join(one.text for one in deltas if isinstance(one, TextDelta))
    return said.strip(), list(zip(names, map(str.strip, written), strict=True))


@pytest.mark.parametrize("name", PLACES)
def test_it_is_found_out_where_a_template_says_calls(
    model_dir: Path, tmp_path: Path, name: str
) -> None:
    template, place = PLACES[name]
    text = text_with(model_dir, tmp_path / "model", template)
    assert [telling.place for telling in text.tellings] == [place, place]


def test_it_is_found_out_for_requests_with_tools_and_without(
    model_dir: Path, tmp_path: Path
) -> None:
    template = "{% if tools %}" + OWN + "{% else %}" + NO_PLACE + "{% endif %}"
    text = text_with(model_dir, tmp_path / "model", template)
    assert [telling.place for telling in text.tellings] == ["calls_as_text", "own"]
    for tools in ((), (LOOK,)):
        rendered = text.render(Conversation(SAID, tools=tools))
        assert rendered.count("<tool_call>") == 3


@pytest.mark.parametrize("name", [name for name in PLACES if name != "refuses everything"])
@pytest.mark.parametrize("tools", [(LOOK,), ()], ids=["with tools", "without"])
def test_all_calls_and_results_reach_the_model_in_their_order(
    model_dir: Path, tmp_path: Path, name: str, tools: tuple[Tool, ...]
) -> None:
    text = text_with(model_dir, tmp_path / "model", PLACES[name][0])
    rendered = text.render(Conversation(SAID, tools=tools))
    at = rendered.index("What is there?")
    one_by_one = ["cats", "three cats", "dogs", "no dogs"]
    all_at_once = ["cats", "dogs", "three cats", "no dogs"]
    is_single = text.tellings[bool(tools)].place == "one_a_message"
    for said in (
        "I look.",
        *(one_by_one if is_single else all_at_once),
        "Quick!",
        "Three cats.",
        "And now?",
        "cats",
        "three cats",
    ):
        assert said in rendered[at:], said
        at = rendered.index(said, at) + len(said)


@pytest.mark.parametrize("family", SIGNS)
def test_where_turns_are_wanted_calls_are_the_assistant_s_and_results_the_user_s(
    model_dir: Path, tmp_path: Path, family: str
) -> None:
    template = f"{{# {SIGNS[family]} #}}{TURNS_ONLY}"
    text = text_with(model_dir, tmp_path / "model", template)
    assert text.family.name == family
    turns = turns_of(text.render(Conversation(SAID, tools=(LOOK,))))
    assert [role for role, _ in turns] == ["user", "assistant"] * 3 + ["user"]
    called, answered, called_again = (content for role, content in turns if role == "assistant")
    cats, dogs = ("look", '{"at": "cats"}'), ("look", '{"at": "dogs"}')
    assert read(text, called) == ("I look.", [cats, dogs])
    assert answered == "Three cats."
    assert read(text, called_again) == ("", [cats])
    results = turns[2][1]
    assert results.index("three cats") < results.index("no dogs") < results.index("Quick!")
    assert "three cats" in turns[-1][1]


def test_a_result_is_told_in_words_where_its_family_has_no_mark_for_it(
    model_dir: Path, tmp_path: Path
) -> None:
    template = "{# <start_of_turn> #}" + TURNS_ONLY
    text = text_with(model_dir, tmp_path / "model", template)
    stray = Message("tool", "late", tool_call_id="c9")
    said = (*SAID[1:5], stray, Message("user", "Quick!"))
    assert turns_of(text.render(Conversation(said))) == [
        ("user", "What is there?"),
        # What stands behind such a call would not be read as one.
        (
            "assistant",
            '{"name": "look", "parameters": {"at": "cats"}}\n'
            '{"name": "look", "parameters": {"at": "dogs"}}\n'
            "I look.",
        ),
        (
            "user",
            "Result of look:\nthree cats\n\nResult of look:\nno dogs\n\nResult of a function:\nlate\n\nQuick!",
        ),
    ]


def test_results_keep_their_role_where_the_template_knows_tools(
    model_dir: Path, tmp_path: Path
) -> None:
    text = text_with(model_dir, tmp_path / "model", "{# <|tool_call_start|> #}" + NO_CALLS)
    turns = turns_of(text.render(Conversation(SAID[1:5], tools=(LOOK,))))
    assert turns == [
        ("user", "What is there?"),
        (
            "assistant",
            'I look.\n<|tool_call_start|>[look(at="cats"), look(at="dogs")]<|tool_call_end|>',
        ),
        ("tool", "three cats"),
        ("tool", "no dogs"),
    ]


def test_thoughts_before_a_call_that_is_text_stay_thoughts(model_dir: Path, tmp_path: Path) -> None:
    template = TURNS_ONLY.replace("{{ m.content }}", "({{ m.reasoning_content }}){{ m.content }}")
    text = text_with(model_dir, tmp_path / "model", template)
    first = Message("assistant", "", tool_calls=MADE[:1], reasoning="Hm.")
    second = Message("assistant", "So.", reasoning="Well.")
    turns = turns_of(text.render(Conversation((SAID[1], first, second, RESULTS[0]))))
    assert turns[1][1].startswith("(Hm.\n\nWell.)<tool_call>")
    assert turns[1][1].endswith("</tool_call>\n\nSo.")


def test_a_conversation_without_calls_is_left_as_it_is(model_dir: Path, tmp_path: Path) -> None:
    text = text_with(model_dir, tmp_path / "model", NO_PLACE)
    said = (Message("user", "Hi"), Message("user", "there"))
    assert turns_of(text.render(Conversation(said))) == [("user", "Hi"), ("user", "there")]


@pytest.mark.parametrize("template", [NO_CALLS, NO_PLACE], ids=["told tools", "told nothing"])
def test_a_family_is_told_from_the_special_tokens_of_a_model_too(
    model_dir: Path, tmp_path: Path, template: str
) -> None:
    marks = ("<|tool_call_start|>", "<|tool_call_end|>")
    text = text_with(model_dir, tmp_path / "model", template, marks)
    assert text.family.name == "lfm2"
    # Decoding shows them to the parser.
    assert {text.decode([token]) for token in text.shown_ids} == set(marks)


@pytest.mark.parametrize(
    ("template", "is_text"),
    [(TAKES_TEXT, True), (SHOWS_THEM, True), (TAKES_OBJECT, False)],
    ids=["put together", "shown", "made JSON of"],
)
def test_arguments_are_json_whether_the_template_wants_an_object_or_a_text(
    model_dir: Path, tmp_path: Path, template: str, is_text: bool
) -> None:
    text = text_with(model_dir, tmp_path / "model", template)
    assert text.tellings[False].arguments_as_text is is_text
    call = ToolCall("c1", "look", {"at": 'the "é"', "deep": [None]})
    rendered = text.render(Conversation((SAID[1], Message("assistant", "", tool_calls=(call,)))))
    assert r'<tool_call>look {"at": "the \"é\"", "deep": [null]}</tool_call>' in rendered


def test_what_a_template_leaves_out_beside_calls_comes_before_them(
    model_dir: Path, tmp_path: Path
) -> None:
    text = text_with(model_dir, tmp_path / "model", NO_TEXT)
    turns = turns_of(text.render(Conversation(SAID[1:5])))
    assert [role for role, _ in turns] == ["user", "assistant", "assistant", "tool", "tool"]
    assert turns[1] == ("assistant", "I look.")
    assert turns[2][1].startswith("<tool_call>")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (OWN, [("tool", "no dogs"), ("user", "Quick!")]),
        (OTHERS_IN_TURNS, [("tool", "no dogs"), ("assistant", ""), ("user", "Quick!")]),
        (NEVER_EMPTY, [("tool", "no dogs\n\nQuick!")]),
        (TURNS_ONLY, [("user", None)]),
    ],
    ids=["there", "behind an empty answer", "in the result", "in one turn"],
)
def test_what_a_user_says_right_behind_results_reaches_the_model(
    model_dir: Path, tmp_path: Path, template: str, expected: list[tuple[str, str | None]]
) -> None:
    text = text_with(model_dir, tmp_path / "model", template)
    called = Message("assistant", "", tool_calls=MADE)
    for said in (
        (SAID[1], called, *RESULTS, SAID[5]),
        (SAID[1], called, *RESULTS, SAID[0], SAID[5]),
    ):
        turns = turns_of(text.render(Conversation(said)))
        own = [turn for turn in turns if turn[0] != "system"][-len(expected) :]
        assert [role for role, _ in own] == [role for role, _ in expected]
        assert all(content in (None, own[at][1]) for at, (_, content) in enumerate(expected))
        assert "Quick!" in own[-1][1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("telling")
    for name, template in (("turns", TURNS_ONLY), ("others", OTHERS_IN_TURNS), ("lists", NO_CALLS)):
        text_with(model_dir, folder / "models" / "test" / name, template)
    with running(create_app(settings_for(folder, folder / "models"))) as server:
        yield server


def as_openai_says_it() -> dict[str, Any]:
    function = {"name": "look", "parameters": LOOK.parameters}
    calls = [
        {
            "id": one.id,
            "type": "function",
            "function": {"name": one.name, "arguments": json.dumps(one.arguments)},
        }
        for one in MADE
    ]
    messages = [
        {"role": "user", "content": "What is there?"},
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": one.id, "content": "cats"} for one in MADE),
        {"role": "user", "content": "Quick!"},
    ]
    return {"messages": messages, "tools": [{"type": "function", "function": function}]}


def as_anthropic_says_it() -> dict[str, Any]:
    calls = [
        {"type": "tool_use", "id": one.id, "name": one.name, "input": one.arguments} for one in MADE
    ]
    results = [{"type": "tool_result", "tool_use_id": one.id, "content": "cats"} for one in MADE]
    messages = [
        {"role": "user", "content": "What is there?"},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, *calls]},
        {"role": "user", "content": [*results, {"type": "text", "text": "Quick!"}]},
    ]
    return {
        "messages": messages,
        "tools": [{"name": "look", "input_schema": LOOK.parameters}],
    }


@pytest.mark.parametrize("model", ["test/turns", "test/others", "test/lists"])
def test_both_clients_may_send_calls_and_results_back(server: RunningServer, model: str) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openai:
        asked = as_openai_says_it()
        answer = openai.chat.completions.create(model=model, max_tokens=4, **asked)
    assert answer.choices[0].finish_reason == "length"
    with Anthropic(base_url=server.url, api_key="none", max_retries=0) as anthropic:
        asked = as_anthropic_says_it()
        message = anthropic.messages.create(model=model, max_tokens=4, **asked)
    assert message.stop_reason == "max_tokens"
    # It is the same prompt, whatever each of them calls its parts, and was read before.
    assert message.usage.cache_read_input_tokens
