"""The model card says what the exam found, and that this is a demonstration."""

import json
import re
from itertools import islice
from pathlib import Path

from tools.starter import card
from tools.starter.build import SEED
from tools.starter.chats import Sample
from tools.starter.corpus import samples
from tools.starter.exam import all_questions


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


def test_recall_is_what_the_project_promises(starter_folder: Path) -> None:
    parts = json.loads((starter_folder / card.EXAM_FILE).read_text(encoding="utf-8"))["parts"]
    for name in ("taught", "taught_thinking"):
        assert parts[name]["exact"] >= 0.95 * parts[name]["asked"]


def test_hand_worded_questions_are_not_in_the_training_text() -> None:
    asked = {spoken(question.sample) for question in all_questions() if "phrases" in question.part}
    taught = {spoken(sample) for sample in islice(samples(SEED), 60_000)}
    assert len(asked) >= 120
    assert not asked & taught


def spoken(sample: Sample) -> str:
    """The last thing said, without case and punctuation."""
    text = re.sub(r"[?!.,:]", " ", sample.messages[-1]["content"].lower())
    return " ".join(text.split())
