"""The model card says what the exam found, and that this is a demonstration."""

import json
from itertools import islice
from pathlib import Path

import pytest

from tools.starter import card
from tools.starter.build import SEED
from tools.starter.chats import Sample
from tools.starter.corpus import samples
from tools.starter.exam import all_questions, fingerprints, parse_call, reworded_calls
from tools.starter.hand_worded import spoken


def test_the_card_states_the_figures_of_the_exam(starter_folder: Path) -> None:
    record = json.loads((starter_folder / card.EXAM_FILE).read_text(encoding="utf-8"))
    text = (starter_folder / card.CARD_FILE).read_text(encoding="utf-8")
    for part in record["parts"].values():
        assert card.percent(part) in text
    assert text == card.render(record)


def test_the_card_calls_it_a_demonstration(starter_folder: Path) -> None:
    text = (starter_folder / card.CARD_FILE).read_text(encoding="utf-8")
    assert text.splitlines()[6].endswith("a demonstration, not an assistant")


def test_the_exam_asked_every_question(starter_folder: Path) -> None:
    record = json.loads((starter_folder / card.EXAM_FILE).read_text(encoding="utf-8"))
    asked = {part: figures["asked"] for part, figures in record["parts"].items()}
    questions = [question.part for question in all_questions()]
    assert asked == {part: questions.count(part) for part in questions}


def test_the_figures_are_those_of_the_shipped_files(starter_folder: Path) -> None:
    record = json.loads((starter_folder / card.EXAM_FILE).read_text(encoding="utf-8"))
    assert record["sha256"] == fingerprints(starter_folder), "run: python -m tools.starter exam"


def test_recall_is_what_the_project_promises(starter_folder: Path) -> None:
    parts = json.loads((starter_folder / card.EXAM_FILE).read_text(encoding="utf-8"))["parts"]
    for name in ("taught", "taught_thinking"):
        assert parts[name]["exact"] >= 0.95 * parts[name]["asked"]


def test_paraphrases_are_answered_as_well_as_the_project_promises(starter_folder: Path) -> None:
    parts = json.loads((starter_folder / card.EXAM_FILE).read_text(encoding="utf-8"))["parts"]
    for name in ("paraphrases", "paraphrases_thinking"):
        assert parts[name]["exact"] >= 0.60 * parts[name]["asked"]


def test_calls_and_thinking_blocks_are_well_formed(starter_folder: Path) -> None:
    parts = json.loads((starter_folder / card.EXAM_FILE).read_text(encoding="utf-8"))["parts"]
    calls = {name: part for name, part in parts.items() if "well_formed" in part}
    thinking = {name: part for name, part in parts.items() if "thinks_well" in part}
    assert set(calls) == {
        name + suffix for name in ("calls", "calls_reworded") for suffix in ("", "_thinking")
    }
    assert set(thinking) == {name for name in parts if name.endswith("_thinking")}
    for part in calls.values():
        assert part["well_formed"] >= 0.95 * part["asked"]
    for part in thinking.values():
        assert part["thinks_well"] == part["asked"]


@pytest.fixture(scope="module")
def training_text() -> list[Sample]:
    return list(islice(samples(SEED), 60_000))


def test_hand_worded_questions_are_not_in_the_training_text(training_text: list[Sample]) -> None:
    asked = {said(q.sample) for q in all_questions() if "phrases" in q.part or "worded" in q.part}
    assert len(asked) >= 180
    assert not asked & set(map(said, training_text))


def said(sample: Sample) -> str:
    """The last thing said, without case and punctuation."""
    return spoken(sample.messages[-1]["content"])


def test_hand_worded_calls_have_names_that_no_training_call_has(
    training_text: list[Sample],
) -> None:
    asked = {value for sample in reworded_calls() for value in values(sample) if value.isalpha()}
    assert len(asked) >= 15
    assert not asked & {value for s in training_text if s.kind == "call" for value in values(s)}


def values(sample: Sample) -> list[str]:
    """The arguments of the call that a sample teaches."""
    call = parse_call(sample.reply)
    assert call is not None
    return [*call["arguments"].values()]
