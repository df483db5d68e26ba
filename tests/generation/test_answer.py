"""Stop strings hold in the text of an answer, and its pieces keep their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_manager.chat.events import (
    Delta,
    FindingKind,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from mlx_manager.chat.request import Sampling, Tool
from mlx_manager.mlx_server.engine.messages import Logprobs
from mlx_manager.mlx_server.families.family import family_of
from mlx_manager.mlx_server.families.messages import answer_parser
from mlx_manager.mlx_server.families.parser import AnswerParser
from mlx_manager.mlx_server.generation.answer import AnswerReader
from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text
from mlx_manager.mlx_server.pool.catalog import ModelFiles

CALL = '<tool_call>{"name": "wait", "arguments": {}}</tool_call>'


@pytest.fixture(scope="module")
def text(model_dir: Path) -> ModelText:
    return load_model_text(ModelFiles("test/tiny", model_dir / "test" / "tiny", "folder", 0))


def test_what_came_behind_the_only_call_wanted_is_counted_and_costs_nothing(
    text: ModelText,
) -> None:
    found = list[tuple[FindingKind, str | int | None]]()
    parser = AnswerParser(
        family_of("<tool_call>"),
        (Tool("wait"),),
        is_parallel=False,
        note=lambda kind, detail: found.append((kind, detail)),
    )
    reader = AnswerReader(text, (), Sampling(), parser)
    call_ids, more_ids = (
        text.tokenizer.encode(part, add_special_tokens=False) for part in (CALL, f" Then:\n{CALL}")
    )

    deltas = reader.feed([*call_ids, *more_ids]) + reader.finish()

    assert [type(delta) for delta in deltas] == [ToolCallStarted, ToolCallDelta]
    assert reader.used_tokens <= len(call_ids)
    assert reader.finished(1, 0, is_cut=False).reason == "tool_calls"
    beyond = len("Then:") + len("".join(CALL.split()))
    assert found == [
        ("tool_call_began", "wait"),
        ("tool_call_ended", None),
        ("tool_call_left_out", beyond),
    ]


def deltas_of(text: ModelText, answer: str, *stop: str) -> tuple[list[Delta], AnswerReader]:
    parser = AnswerParser(family_of("<tool_call><think></think>"), (Tool("wait"),))
    reader = AnswerReader(text, stop, Sampling(), parser)
    found = list[Delta]()
    for token_id in text.tokenizer.encode(answer, add_special_tokens=False):
        found += reader.feed([token_id])
    return found + ([] if reader.is_stopped else reader.finish()), reader


def test_what_could_have_begun_a_stop_string_comes_before_the_call_behind_it(
    text: ModelText,
) -> None:
    deltas, reader = deltas_of(text, f"I wait EN{CALL} now.", "END")
    kinds = [type(delta) for delta in deltas]
    first = kinds.index(ToolCallStarted)
    before = "".join(one.text for one in deltas[:first] if isinstance(one, TextDelta))
    behind = "".join(one.text for one in deltas[first:] if isinstance(one, TextDelta))
    assert (before, behind) == ("I wait EN", " now.")
    assert ToolCallDelta in kinds
    assert not reader.is_stopped


@pytest.mark.parametrize("between", [CALL, "<think>Hm.</think>"])
def test_a_stop_string_does_not_reach_over_what_is_no_text(text: ModelText, between: str) -> None:
    deltas, reader = deltas_of(text, f"EN{between}D.", "END")
    assert "".join(one.text for one in deltas if isinstance(one, TextDelta)) == "END."
    assert not reader.is_stopped
    assert any(isinstance(one, (ToolCallStarted, ReasoningDelta)) for one in deltas)


def test_a_stop_string_behind_a_call_ends_the_answer_there(text: ModelText) -> None:
    deltas, reader = deltas_of(text, f"I wait.{CALL} Then END of it", "END")
    assert "".join(one.text for one in deltas if isinstance(one, TextDelta)) == "I wait. Then "
    assert reader.is_stopped


@pytest.mark.parametrize("top_logprobs", [None, 0])
def test_text_keeps_what_it_is_and_no_stop_string_goes_on_in_another_message(
    text: ModelText, top_logprobs: int | None
) -> None:
    parser = answer_parser(family_of("", "gpt-oss"))
    reader = AnswerReader(text, ("up.\n\nY", "end"), Sampling(top_logprobs=top_logprobs), parser)
    answer = (
        "<|channel|>commentary<|message|>I look it up.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Yes, in the end.<|return|>"
    )
    deltas = list[Delta]()
    for token_id in text.tokenizer.encode(answer, add_special_tokens=False):
        deltas += reader.feed([token_id], [Logprobs(1, -0.5, [], [])])
    said, phase = dict[str | None, str](), None
    for one in deltas:
        assert isinstance(one, TextDelta)
        phase = one.phase or phase
        said[phase] = said.get(phase, "") + one.text
    assert said == {"commentary": "I look it up.", "final_answer": "\n\nYes, in the "}
    assert reader.is_stopped
