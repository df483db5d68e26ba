"""Grammars over a model's vocabulary: llguidance compiles them and knows which tokens fit. No MLX here."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from mlx_manager.mlx_server.engine.token_bytes import TokenBytes

# llguidance would write the grammar, which is the client's, and the answer so far on standard error, which is logged.
SILENT = 0
LIMITS = LLParserLimits(verbose_errors=False)
# What is too complex shows when its first tokens are drawn; a large number has 12.
PROBED_TOKENS = 16
# Seconds of computing that these tokens may take, 32 of them. Those of the answer are computed on the engine's thread,
# and all rows wait: an ambiguous grammar of 24 KiB, within llguidance's limits, took 2 s for each.
PROBE_S = 1.0
# Where in the grammar, which is written here and not by the client, an error is.
POSITION = re.compile(r"^at \d+\(\d+\): ")
# Added tokens that look like this mean something, also where the tokenizer's file doesn't call them special.
MARK = re.compile(r"<.*>|\[.*\]", re.DOTALL)


class GrammarRefused(ValueError):
    """The model's tokens can't be held to a grammar; says why in words that may quote it."""


class Matcher:
    """Where one answer stands in its grammar. `end` is the place in masks that stands for the answer's end."""

    def __init__(self, matcher: LLMatcher, end: int) -> None:
        self._matcher = matcher
        self._end = end

    def copy(self) -> Matcher:
        """Return one for another answer, that stands in the same place."""
        return Matcher(self._matcher.deep_copy(), self._end)

    @property
    def is_given_up(self) -> bool:
        """Whether the grammar was too complex to go on with."""
        return bool(self._matcher.is_error())

    def allowed(self) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], bool]:
        """Return which tokens may come, a 0 or 1 for each of the vocabulary, and whether the answer may end here."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(mask, count=self._end + 1, bitorder="little")
        return bits[:-1], bool(bits[-1])

    def take(self, token_id: int) -> None:
        """Go on by one token."""
        self._matcher.consume_token(token_id)

    def begin_again(self) -> bool:
        """Go back to the beginning when nothing can follow any more; return whether it was so."""
        if not (self._matcher.is_accepting() and self._matcher.is_stopped()):
            return False
        self._matcher.reset()
        return True

    def why(self) -> str:
        """Return llguidance's word for why it stopped; its message would quote."""
        return str(self._matcher.stop_reason())


class Vocabulary:
    """The tokens of the model in `path` as grammars see them; `token_bytes` are known when it has been read.

    Its methods may be called from several threads at once.
    """

    def __init__(self, path: Path, *, probe_s: float = PROBE_S) -> None:
        self._path = path
        self._probe_s = probe_s
        self._reading = Lock()
        self._tokenizer: LLTokenizer | None = None
        self.token_bytes: list[bytes] = []

    def read(self) -> LLTokenizer:
        """Read it, which takes a second for a large one and holds the interpreter's lock for the most of it."""
        with self._reading:
            if self._tokenizer is None:
                # It is asked what llguidance's own wrapper of a tokenizer would be.
                tokens: Any = _Tokens(Tokenizer.from_file(str(self._path / "tokenizer.json")))
                self.token_bytes = tokens.tokens
                self._tokenizer = tokens.greedy = LLTokenizer(tokens)
            return self._tokenizer

    def matcher(self, grammar: str) -> Matcher:
        """Return what follows an answer through `grammar`, with its first mask computed: the slowest one.

        Raises GrammarRefused, also when it turns out within a few tokens that it is too complex, leads nowhere or would
        hold up the answers beside it.
        """
        inner = LLMatcher(self.read(), grammar, log_level=SILENT, limits=LIMITS)
        if inner.is_error():
            raise GrammarRefused(_words(inner.get_error()))
        matcher = Matcher(inner, len(self.token_bytes))
        matcher.allowed()
        # Not the clock's: how busy the machine is must not decide what is refused.
        end_s = time.thread_time() + self._probe_s
        for way in (0, -1):
            _probe(matcher.copy(), way, end_s)
        return matcher


def _words(message: str) -> str:
    """Return what is wrong in a message that also shows where, over several lines."""
    first, *others = message.split("\n")
    reasons = [line.removeprefix("error: ") for line in others if line.startswith("error: ")]
    return " ".join([POSITION.sub("", first), *reasons])


def _probe(matcher: Matcher, way: int, end_s: float) -> None:
    """Go some tokens into a grammar, by the first or the last token each time. Raises GrammarRefused.

    `end_s` is what the thread's time of computing may have come to.
    """
    for _ in range(PROBED_TOKENS):
        if time.thread_time() > end_s:
            raise GrammarRefused("it is too complex: its tokens take too long to find")
        bits, may_end = matcher.allowed()
        if matcher.is_given_up:
            raise GrammarRefused("it is too complex")
        ways = np.flatnonzero(bits)
        if not ways.size:
            if not may_end:
                raise GrammarRefused("the model has no token that it could go on with")
            return
        matcher.take(int(ways[way]))


class _Tokens:
    """What llguidance asks of a tokenizer. No text is ever a special token here, and no special token is a text."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    # None: llguidance adds one behind the last token, which stands for all that end an answer.
    eos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder()
        of, last = TokenBytes(tokenizer).of, max(tokenizer.get_vocab(True).values())
        self.tokens = [of(token_id) for token_id in range(last + 1)]
        self.special_token_ids = [
            token_id
            for token_id, token in added.items()
            if token.special or MARK.fullmatch(token.content)
        ]
        self.greedy: LLTokenizer | None = None
        self._plain = Tokenizer(tokenizer.model)
        self._plain.pre_tokenizer = tokenizer.pre_tokenizer
        self._plain.normalizer = tokenizer.normalizer

    def __call__(self, text: str) -> Sequence[int]:
        """Return the tokens that the model itself would write `text` with, if they are its text to the letter."""
        token_ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if b"".join(self.tokens[token_id] for token_id in token_ids) == text.encode():
            return token_ids
        assert self.greedy is not None
        return self.greedy.greedy_tokenize(text)
