"""As much of PromQL as it takes to see what a query asks for, and that nothing in it is misspelled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

FUNCTIONS = frozenset({"histogram_quantile", "increase", "label_values", "rate", "sum"})
TOKEN = re.compile(
    r"\s*(?:(?P<word>[a-zA-Z_:][a-zA-Z0-9_:]*)|(?P<string>\"[^\"]*\")|(?P<range>\[\d+[smhd]\])"
    r"|(?P<number>\d+(?:\.\d+)?)|(?P<match>=~|!~|!=|=)|(?P<sign>[(){},/*+-]))"
)
CLOSING = {")": "(", "}": "{"}


@dataclass(frozen=True)
class Matcher:
    """`label=~"pattern"` and its kind."""

    label: str
    operator: str
    value: str

    def accepts(self, value: str) -> bool:
        """Whether a label's value, empty when there is none, is what this wants."""
        is_pattern = self.operator.endswith("~")
        is_equal = bool(re.fullmatch(self.value, value)) if is_pattern else self.value == value
        return is_equal != self.operator.startswith("!")


@dataclass(frozen=True)
class Selector:
    """A metric's name and which of its series are wanted."""

    metric: str
    matchers: tuple[Matcher, ...]
    is_range: bool


@dataclass(frozen=True)
class Query:
    """What a query reads, and by which labels it groups."""

    selectors: tuple[Selector, ...]
    grouping: frozenset[str]


def parse(text: str) -> Query:
    """Take a query apart. Raises ValueError for what it doesn't know, and for brackets that don't match."""
    return _Parser(list(tokens(text))).query()


def tokens(text: str) -> Iterator[tuple[str, str]]:
    """The words and signs of a query, each with its kind. Raises ValueError for what is none."""
    position, opened = 0, list[str]()
    while position < len(text):
        found = TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise ValueError(f"not PromQL: {text[position:]}")
        position, kind, value = found.end(), found.lastgroup, found[found.lastgroup]
        if value in "({":
            opened.append(value)
        elif value in CLOSING and (not opened or opened.pop() != CLOSING[value]):
            raise ValueError(f"nothing to close by {value} in {text}")
        yield kind, value
    if opened:
        raise ValueError(f"not closed: {text}")


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0
        self._selectors: list[Selector] = []
        self._grouping: set[str] = set()

    def query(self) -> Query:
        while self._at < len(self._tokens):
            kind, value = self._next()
            if kind == "word":
                self._word(value)
            elif kind in ("string", "match"):
                raise ValueError(f"{value} is out of place")
        return Query(tuple(self._selectors), frozenset(self._grouping))

    def _word(self, word: str) -> None:
        if word == "by":
            self._grouping |= set(self._names())
        elif self._peek() == "(" or (word in FUNCTIONS and self._peek() == "by"):
            if word not in FUNCTIONS:
                raise ValueError(f"there is no function {word}")
        else:
            self._select(word)

    def _select(self, metric: str) -> None:
        matchers = tuple(self._matchers()) if self._peek() == "{" else ()
        is_range = self._at < len(self._tokens) and self._tokens[self._at][0] == "range"
        self._at += is_range
        self._selectors.append(Selector(metric, matchers, is_range))

    def _matchers(self) -> Iterator[Matcher]:
        while self._next()[1] != "}":
            (_, label), (sign, operator), (kind, value) = self._next(), self._next(), self._next()
            if (sign, kind) != ("match", "string"):
                raise ValueError(f"{label} is not compared with anything")
            yield Matcher(label, operator, value.strip('"'))
            if self._peek() not in (",", "}"):
                raise ValueError(f"after {label} comes neither a comma nor an end")

    def _names(self) -> Iterator[str]:
        if self._next()[1] != "(":
            raise ValueError("by what?")
        while (token := self._next())[1] != ")":
            if token[0] == "word":
                yield token[1]

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise ValueError("the query ends too soon")
        self._at += 1
        return self._tokens[self._at - 1]

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""
