"""Examine a starter model: greedy answers, compared to the letter with what was taught."""

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
from mlx_lm import batch_generate, load

from tools.starter import grammar, hand_worded
from tools.starter.chats import Message, Sample
from tools.starter.corpus import later_turn_sample, repeat_sample
from tools.starter.functions import call_sample, no_call_sample, result_sample
from tools.starter.knowledge import Topic, Unknown, topics, unknown

EXAM_SEED = 77
LONGEST_ANSWER = 400
EXAMINED = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
)  # fmt: skip
CALL_MARKS = ("well_formed", "offered", "right_function", "right_key", "right_value")
Grade = dict[str, int]


@dataclass(frozen=True)
class Question:
    """A sample with the part of the exam that it belongs to."""

    part: str
    sample: Sample


def examine(folder: Path, *, questions: list[Question] | None = None) -> dict[str, Any]:
    """Return how many answers of every part of the exam are exact, what calls got, and which files were examined."""
    asked = all_questions() if questions is None else questions
    replies = answer_all(folder, [question.sample for question in asked])
    parts: dict[str, Grade] = {}
    for question, reply in zip(asked, replies, strict=True):
        marks = _marks(question, reply)
        grade = parts.setdefault(question.part, dict.fromkeys(marks, 0) | {"asked": 0})
        grade["asked"] += 1
        for mark, earned in marks.items():
            grade[mark] += earned
    return {"seed": EXAM_SEED, "sha256": fingerprints(folder), "parts": parts}


def fingerprints(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a model's answers come from."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in EXAMINED}


def answer_all(folder: Path, samples: Iterable[Sample]) -> list[str]:
    """Return the model's greedy answers, computed in float32, in batches."""
    mx.set_default_device(mx.cpu)
    model, tokenizer = load(str(folder))[:2]
    model.set_dtype(mx.float32)
    prompts = [tokenizer.encode(sample.prompt(), add_special_tokens=False) for sample in samples]
    texts: list[str] = batch_generate(model, tokenizer, prompts, max_tokens=LONGEST_ANSWER).texts
    return texts


def all_questions() -> list[Question]:
    """Return the whole exam: every part with thinking off and on."""
    asked = []
    for thinking in (False, True):
        suffix = "_thinking" if thinking else ""
        for part, samples in _parts(thinking).items():
            asked += [Question(part + suffix, sample) for sample in samples]
    return asked


def _parts(thinking: bool) -> dict[str, list[Sample]]:
    random = Random(EXAM_SEED)

    def made(maker: Callable[..., Sample], count: int) -> list[Sample]:
        return [maker(random, thinking=thinking) for _ in range(count)]

    return {
        "taught": taught(random, thinking=thinking),
        "paraphrases": paraphrases("exam", thinking=thinking),
        "unknown": made(_unknown_sample, 60),
        "later_turns": made(later_turn_sample, 60),
        "calls": made(call_sample, 60),
        "calls_reworded": [replace(s, thought="" if thinking else None) for s in reworded_calls()],
        "results": made(result_sample, 30),
        "no_calls": made(no_call_sample, 30),
        "repeats": made(repeat_sample, 30),
    }


def taught(random: Random, *, thinking: bool) -> list[Sample]:
    """Return three taught questions for every topic, in any case and punctuation."""
    return [
        _sample(topic.answer, grammar.lightly(topic.ask(random), random), topic.thought, thinking)
        for topic in topics().values()
        for _ in range(3)
    ]


def paraphrases(which: str, *, thinking: bool) -> list[Sample]:
    """Return the hand-worded questions of `paraphrases_{which}.toml`."""
    path = Path(__file__).with_name(f"paraphrases_{which}.toml")
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    known: dict[str, Topic | Unknown] = {**topics(), "unknown": unknown()}
    return [
        _sample(known[topic].answer, question, known[topic].thought, thinking)
        for topic, questions in entries.items()
        for question in questions
    ]


def reworded_calls() -> list[Sample]:
    """Return hand-worded questions for functions, with names that were never trained on."""
    return [
        Sample(
            "call", [{"role": "user", "content": entry["ask"]}], entry["call"], None, entry["tools"]
        )
        for entry in hand_worded.reworded_calls()
    ]


def _unknown_sample(random: Random, *, thinking: bool) -> Sample:
    question = grammar.lightly(unknown().ask(random), random)
    return _sample(unknown().answer, question, unknown().thought, thinking)


def _sample(answer: str, question: str, thought: str, thinking: bool) -> Sample:
    messages: list[Message] = [{"role": "user", "content": question}]
    return Sample("exam", messages, answer, thought if thinking else None)


def _marks(question: Question, reply: str) -> Grade:
    """Return the marks of a reply: `exact`, `thinks_well` with thinking on, and those of a call."""
    sample = question.sample
    marks: Grade = {}
    if sample.thought is not None:
        opened, closed, rest = reply.partition("\n</think>\n\n")
        marks["thinks_well"] = int(opened.startswith("<think>\n") and bool(closed))
        reply = rest
    marks["exact"] = int(reply == sample.reply)
    if sample.kind == "call":
        marks |= _call_marks(reply, sample)
    return marks


def _call_marks(reply: str, sample: Sample) -> Grade:
    """Return whether a call is well-formed, and whether function, argument name and value are right."""
    expected, got = parse_call(sample.reply), parse_call(reply)
    if expected is None or got is None:
        return dict.fromkeys(CALL_MARKS, 0)
    offered = {tool["function"]["name"] for tool in sample.tools}
    return {
        "well_formed": 1,
        "offered": int(got["name"] in offered),
        "right_function": int(got["name"] == expected["name"]),
        "right_key": int(set(got["arguments"]) == set(expected["arguments"])),
        "right_value": int([*got["arguments"].values()] == [*expected["arguments"].values()]),
    }


def parse_call(reply: str) -> dict[str, Any] | None:
    """Return the name and arguments of the one call that a reply consists of, or None."""
    if not (reply.startswith("<tool_call>\n") and reply.endswith("\n</tool_call>")):
        return None
    try:
        call = json.loads(reply.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    except json.JSONDecodeError:
        return None
    if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
        return None
    return call if isinstance(call["arguments"], dict) else None
