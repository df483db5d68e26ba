"""Every schema is kept to, by every way through it, or refused: on the shipped model's tokens, without the model."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend, validator_for

from mlx_manager.chat.request import AnswerFormat, ChatRequest, Origin, RawPrompt
from mlx_manager.errors import InvalidRequest
from mlx_manager.mlx_server.engine.grammar import GrammarRefused, Matcher, Vocabulary
from mlx_manager.mlx_server.generation.grammars import constraint_for
from mlx_manager.mlx_server.generation.model_text import ModelText, load_model_text
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from tests.support.json_schemas import HELD, REFUSED, Schema, schemas

STARTER = Path(__file__).parents[2] / "mlx_manager" / "starter"
WALKS = 8
MOST_TOKENS = 400
# Bytes that bring a text of JSON to its end.
CLOSING = b'"}], :'


@pytest.fixture(scope="module")
def text() -> ModelText:
    return load_model_text(ModelFiles("starter", STARTER, "built-in", 0))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    vocabulary = Vocabulary(STARTER)
    vocabulary.read()
    return vocabulary


class Walker:
    """Writes texts of grammars token by token, as no model would."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._bytes = vocabulary.token_bytes
        self._first = np.array([data[0] if data else 256 for data in self._bytes])
        closes = [bool(data) and all(byte in CLOSING for byte in data) for data in self._bytes]
        self._closes = np.array(closes)

    def walk(self, matcher: Matcher, chance: random.Random) -> bytes | None:
        """Return a whole text; None when it is too long."""
        written, hurry = b"", chance.choice((0.1, 0.3, 0.6))
        for _ in range(MOST_TOKENS):
            bits, may_end = matcher.allowed()
            assert not matcher.is_given_up, written
            allowed = np.flatnonzero(bits)
            if may_end and (not allowed.size or chance.random() < 0.5):
                return written
            token_id = self._chosen(allowed, hurry, chance)
            matcher.take(token_id)
            written += self._bytes[token_id]
        return None

    def _chosen(self, allowed: Any, hurry: float, chance: random.Random) -> int:
        closing = allowed[self._closes[allowed]]
        if not closing.size or chance.random() > hurry:
            # By the first byte, or letters would crowd out all else.
            byte = chance.choice(sorted(set(self._first[allowed].tolist())))
            closing = allowed[self._first[allowed] == byte]
        return int(chance.choice(closing.tolist()))


def is_multiple(validator: Any, of: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    """`multipleOf` in decimal numbers, as they are written: 0.3 is a multiple of 0.1."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and Decimal(repr(value)) % Decimal(repr(of)):
        yield ValidationError(f"{value} is not a multiple of {of}")


def matches(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    """`pattern` as ECMAScript means it, to which schemas refer: its classes are of ASCII, but for white space."""
    modes = (re.ASCII, re.UNICODE)
    if isinstance(value, str) and not any(re.search(pattern, value, mode) for mode in modes):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def errors_of(schema: Schema, value: Any) -> list[str]:
    kind = validator_for(schema, default=Draft202012Validator)
    checked: Any = extend(  # type: ignore[no-untyped-call]
        kind, {"multipleOf": is_multiple, "pattern": matches}
    )
    validator = checked(schema, format_checker=kind.FORMAT_CHECKER)
    return [error.message for error in validator.iter_errors(value)]


def matcher_of(schema: Schema, text: ModelText, vocabulary: Vocabulary) -> Matcher:
    """What the engine makes of a request for this schema."""
    asked = ChatRequest(
        "starter",
        RawPrompt("x"),
        Origin("r", "/v1/completions"),
        format=AnswerFormat("json_schema", schema, "response_format"),
    )
    constraint = constraint_for(asked, text, "")
    assert constraint is not None
    return vocabulary.matcher(constraint.grammar)


@pytest.mark.parametrize(("name", "schema"), schemas(HELD), ids=lambda found: str(found)[:24])
def test_every_text_is_valid(
    text: ModelText, vocabulary: Vocabulary, name: str, schema: Schema
) -> None:
    matcher, walker, whole = matcher_of(schema, text, vocabulary), Walker(vocabulary), 0
    for walk in range(WALKS):
        written = walker.walk(matcher.copy(), random.Random(f"{name} {walk}"))
        if written is not None:
            whole += 1
            assert errors_of(schema, json.loads(written)) == [], written
    assert whole > 2, "hardly a text came to its end"


@pytest.mark.parametrize(("name", "schema"), schemas(REFUSED), ids=lambda found: str(found)[:24])
def test_what_is_not_kept_to_is_refused(
    text: ModelText, vocabulary: Vocabulary, name: str, schema: Schema
) -> None:
    with pytest.raises((InvalidRequest, GrammarRefused)):
        matcher_of(schema, text, vocabulary)


def test_the_schemas_are_of_every_keyword_that_there_is() -> None:
    known = set(Draft202012Validator.VALIDATORS) - {"$dynamicRef", "dependentRequired"}
    text = json.dumps([HELD, REFUSED])
    assert [word for word in sorted(known) if f'"{word}"' not in text] == []
