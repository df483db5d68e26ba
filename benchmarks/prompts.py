"""Prompts of an exact length in tokens, no two alike."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Template
from tokenizers import Tokenizer

from tools.random_model import CHAT_TEMPLATE

WORDS = "model token batch layer prompt answer server client engine weight stream memory".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A user's message, and the token ids of the whole conversation as the chat template renders it."""

    text: str
    token_ids: list[int]


class PromptMaker:
    """Writes prompts for one model. The same numbers give the same prompts."""

    def __init__(self, model: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._template = Template(CHAT_TEMPLATE)

    def make(self, count: int, tokens: int, seed: int) -> list[Prompt]:
        """Return `count` prompts of exactly `tokens` tokens; those of two seeds differ from their first word on.

        So no server can answer one from what it kept of another.
        """
        return [self._prompt(tokens, random.Random(f"{seed}/{number}")) for number in range(count)]

    def _prompt(self, tokens: int, chance: random.Random) -> Prompt:
        for text in _candidates(chance):
            token_ids = self._encode(text)
            if len(token_ids) == tokens:
                return Prompt(text, token_ids)
            if len(token_ids) > tokens:
                break
        # The last word was too long: begin anew with other words.
        return self._prompt(tokens, chance)

    def _encode(self, text: str) -> list[int]:
        message = {"role": "user", "content": text}
        rendered = self._template.render(messages=[message], add_generation_prompt=True)
        return list(self._tokenizer.encode(rendered, add_special_tokens=False).ids)


def _candidates(chance: random.Random) -> Iterator[str]:
    """Yield a text that grows by a word, beginning with a mark that hardly comes twice."""
    text = "".join(chance.choices(LETTERS, k=8))
    while True:
        yield text
        text += f" {chance.choice(WORDS)}"
