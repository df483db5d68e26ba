"""What the model reads where the client has begun its answer: what it would have written itself up to there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_manager.chat.events import ReasoningDelta, TextDelta, ToolCallStarted
from mlx_manager.chat.request import Conversation, Message, Sampling, Tool
from mlx_manager.errors import InvalidRequest
from mlx_manager.mlx_server.families.messages import answer_parser
from mlx_manager.mlx_server.generation.answer import AnswerReader
from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text
from mlx_manager.mlx_server.generation.template_variables import template_variables
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from tests.families.chat_templates import KIMI_K3

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
)
PLAIN = TURNS.replace(".split('</think>')[-1]", "") + "{% endif %}"
SWITCHED = TURNS + "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
ALWAYS = TURNS + "<think>\n{% endif %}"
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}{# <|channel|> <|call|> #}"
)
BARE = PLAIN + "{# <|start_header_id|> tools #}"
ASKED = Message("user", "Hi")
QUESTION = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def text_with(model_dir: Path, folder: Path, template: str) -> ModelText:
    path = shutil.copytree(model_dir / "test" / "tiny", folder / "model")
    (path / "chat_template.jinja").write_text(template)
    return load_model_text(ModelFiles("test/model", path, "folder", 0))


def begun(content: str, reasoning: str | None = None, **fields: Any) -> Conversation:
    last = Message("assistant", content, reasoning=reasoning)
    return Conversation((ASKED, last), is_begun=True, **fields)


@pytest.mark.parametrize(
    ("template", "conversation", "expected", "opening"),
    [
        (PLAIN, begun("Well, "), QUESTION + "Well, ", ""),
        (SWITCHED, begun("Well, "), QUESTION + "<think>\n\n</think>\n\nWell, ", ""),
        (SWITCHED, begun("Well, ", thinking=False), QUESTION + "<think>\n\n</think>\n\nWell, ", ""),
        (SWITCHED, begun("Well, ", "Hm."), QUESTION + "<think>\nHm.\n</think>\n\nWell, ", ""),
        (SWITCHED, begun("<think>\nHm"), QUESTION + "<think>\nHm", "<think>"),
        (SWITCHED, begun("<think>\nHm\n</think>\n\nA"), QUESTION + "<think>\nHm\n</think>\n\nA", ""),
        (ALWAYS, begun("Well, "), QUESTION + "<think>\n</think>\n\nWell, ", ""),
        (ALWAYS, begun("Well, ", "Hm."), QUESTION + "<think>\nHm.\n</think>\n\nWell, ", ""),
        (ALWAYS, begun("<think>\nHm", thinking=True), QUESTION + "<think>\nHm", "<think>"),
        (
            HARMONY,
            begun("Well, "),
            "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>Well, ",
            "<|channel|>final<|message|>",
        ),
        (
            HARMONY,
            begun("Well, ", "Hm."),
            "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>analysis<|message|>Hm.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Well, ",
            "<|channel|>final<|message|>",
        ),
    ],
)  # fmt: skip
def test_the_answer_goes_on_behind_what_its_client_has(
    model_dir: Path, tmp_path: Path, template: str, conversation: Conversation, expected: str, opening: str
) -> None:  # fmt: skip
    text = text_with(model_dir, tmp_path, template)
    encoded = text.encode(conversation)
    assert text.decode(encoded.token_ids) == expected
    assert (encoded.opening, encoded.is_begun) == (opening, True)


@pytest.mark.parametrize("template", [SWITCHED, ALWAYS, HARMONY])
def test_a_model_that_is_to_think_first_can_t_go_on_with_an_answer(
    model_dir: Path, tmp_path: Path, template: str
) -> None:
    text = text_with(model_dir, tmp_path, template)
    with pytest.raises(InvalidRequest, match="reasoning off"):
        text.encode(begun("Well, ", thinking=True))


def test_one_that_never_thinks_can(model_dir: Path, tmp_path: Path) -> None:
    text = text_with(model_dir, tmp_path, PLAIN)
    assert text.decode(text.encode(begun("A", thinking=True)).token_ids) == QUESTION + "A"


def read(text: ModelText, opening: str, answer: str, *tools: Tool) -> list[Any]:
    """What a client gets of `answer` behind what it has."""
    parser = answer_parser(text.family, tools)
    reader = AnswerReader(text, (), Sampling(), parser, opening)
    reader.skip_beginning()
    deltas = list(reader.begin())
    for token_id in text.tokenizer.backend_tokenizer.encode(answer, add_special_tokens=False).ids:
        deltas += reader.feed([token_id])
    return [*deltas, *reader.finish()]


def said(deltas: list[Any], kind: type[ReasoningDelta] | type[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, kind))


def test_a_thought_that_was_begun_is_read_on_as_one(model_dir: Path, tmp_path: Path) -> None:
    text = text_with(model_dir, tmp_path, ALWAYS)
    deltas = read(text, "<think>", " more</think>\n\nYes.")
    assert (said(deltas, ReasoningDelta), said(deltas, TextDelta)) == (" more", "Yes.")


def test_a_message_that_was_begun_is_read_on_as_its_text(model_dir: Path, tmp_path: Path) -> None:
    text = text_with(model_dir, tmp_path, HARMONY)
    assert said(read(text, "<|channel|>final<|message|>", " yes."), TextDelta) == " yes."


def test_json_in_the_middle_of_a_text_is_no_call(model_dir: Path, tmp_path: Path) -> None:
    text = text_with(model_dir, tmp_path, BARE)
    call = json.dumps({"name": "look", "parameters": {}})
    assert text.family.bare
    deltas = read(text, "", call, Tool("look"))
    assert said(deltas, TextDelta) == call
    assert not any(isinstance(delta, ToolCallStarted) for delta in deltas)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, set()),
        ("{{ messages }}{% if enable_thinking %}{% endif %}", {"messages", "enable_thinking"}),
        ("{% set thinking = thinking | default(true) %}{{ thinking }}", {"thinking"}),
        ("{% for m in messages %}{{ m.thinking }}{{ m['verbosity'] }}{% endfor %}", {"messages"}),
        ("thinking {% generation %}{{ a }}{% endgeneration %}{% for b in a %}{% break %}{% endfor %}", {"a"}),
        ("{% set ns = namespace(thinking=false) %}{{ ns.thinking }}", set()),
        ({"default": "{{ a }}", "tool_use": "{{ tools }}"}, {"a", "tools"}),
        ("{% if %} verbosity", {"verbosity", "if"}),
    ],
)  # fmt: skip
def test_the_variables_that_a_template_reads(template: Any, expected: set[str]) -> None:
    assert template_variables(template) == expected


K3_ASKED = (
    '<|open|>message role="user"<|sep|>Hi<|close|>message<|sep|><|end_of_msg|>'
    '<|open|>message role="assistant"<|sep|>'
)


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (begun("Well, ", thinking=False), "<|open|>response<|sep|>Well, "),
        (
            begun("Well, ", "Hm.", thinking=True),
            "<|open|>think<|sep|>Hm.\n<|close|>think<|sep|><|open|>response<|sep|>Well, ",
        ),
    ],
    ids=["without thoughts", "behind thoughts"],
)
def test_what_frames_an_answer_stands_before_its_beginning(
    model_dir: Path, tmp_path: Path, conversation: Conversation, expected: str
) -> None:
    text = text_with(model_dir, tmp_path, KIMI_K3)
    assert text.decode(text.encode(conversation).token_ids) == K3_ASKED + expected
