"""Prompts of an exact length in tokens, no two alike."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Template
from tokenizers import Tokenizer

from tools.random_model import CHAT_TEMPLATE

WORDS = "model token batch layer prompt answer server client engine weight stream memory".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Message = dict[str, str]


def user(text: str) -> Message:
    """Return a user's message."""
    return {"role": "user", "content": text}


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
        # A word is encoded by itself, whatever it stands behind.
        self._word_tokens = {word: len(self._tokenizer.encode(f" {word}").ids) for word in WORDS}

    def make(self, lengths: Sequence[int], seed: int) -> list[Prompt]:
        """Return a prompt of exactly so many tokens for each; those of two seeds differ from their first word on.

        So no server can answer one from what it kept of another.
        """
        return [
            self._prompt(tokens, random.Random(f"{seed}/{number}"))
            for number, tokens in enumerate(lengths)
        ]

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation, up to where its next answer begins."""
        rendered = self._template.render(messages=messages, add_generation_prompt=True)
        return list(self._tokenizer.encode(rendered, add_special_tokens=False).ids)

    def _prompt(self, tokens: int, chance: random.Random) -> Prompt:
        """Return a mark that hardly comes twice, and words."""
        text = "".join(chance.choices(LETTERS, k=8))
        missing = tokens - len(self.encode([user(text)]))
        while fitting := [word for word in WORDS if self._word_tokens[word] <= missing]:
            word = chance.choice(fitting)
            text += f" {word}"
            missing -= self._word_tokens[word]
        token_ids = self.encode([user(text)])
        # The mark was too long, or nothing short enough for the rest: begin anew with another one.
        return Prompt(text, token_ids) if len(token_ids) == tokens else self._prompt(tokens, chance)
