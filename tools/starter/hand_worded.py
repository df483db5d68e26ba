"""Questions of the exam that people worded: the training text leaves them out."""

import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

PARAPHRASES = Path(__file__).with_name("paraphrases_exam.toml")
CALLS = Path(__file__).with_name("reworded_calls.json")


@cache
def hand_worded() -> frozenset[str]:
    """Return those questions as `spoken` gives them."""
    paraphrases = tomllib.loads(PARAPHRASES.read_text(encoding="utf-8")).values()
    asked = [question for questions in paraphrases for question in questions]
    asked += [entry["ask"] for entry in reworded_calls()]
    return frozenset(map(spoken, asked))


def reworded_calls() -> list[dict[str, Any]]:
    """Return questions for functions, each with the tools that are offered and the right call."""
    entries: list[dict[str, Any]] = json.loads(CALLS.read_text(encoding="utf-8"))
    return entries


def spoken(text: str) -> str:
    """Return a text without case and punctuation: what stays the same however it is typed."""
    return " ".join(re.sub(r"[?!.,:]", " ", text.lower()).split())
