"""What a query gives over two scrapes: the forms of PromQL that the dashboard is made of, by Prometheus's rules."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tests.support.promql import Matcher, tokens
from tests.support.scrape import Scrape

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]


@dataclass(frozen=True)
class Window:
    """Two scrapes of the same server, `seconds` apart."""

    before: Scrape
    after: Scrape
    seconds: float

    def value(self, query: str) -> Vector:
        """Evaluate a query at the time of the second scrape. Raises ValueError for a form that the dashboard hasn't."""
        reader = _Reader(list(tokens(query)), self)
        found = reader.expression()
        if not reader.is_at_end:
            raise ValueError(f"not understood to its end: {query}")
        return found


class _Reader:
    def __init__(self, listed: list[tuple[str, str]], window: Window) -> None:
        self._tokens = listed
        self._at = 0
        self._window = window

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._tokens)

    def expression(self) -> Vector:
        """One value, or one divided by another."""
        found = self._value()
        while self._peek() == "/":
            self._next()
            found = divided(found, self._value())
        return found

    def _value(self) -> Vector:
        kind, word = self._next()
        if kind != "word":
            raise ValueError(f"{word} is no value")
        match word:
            case "sum":
                grouping = self._names() if self._peek() == "by" else frozenset[str]()
                return summed(self._in_brackets(self.expression), grouping)
            case "rate" | "increase":
                rise = self._in_brackets(lambda: self._selected(self._next()[1], is_range=True))
                by = self._window.seconds if word == "rate" else 1
                return {labels: value / by for labels, value in rise.items()}
            case "histogram_quantile":
                return self._in_brackets(self._quantile)
        return self._selected(word, is_range=False)

    def _quantile(self) -> Vector:
        share = float(self._next()[1])
        self._expect(",")
        return quantile(share, self.expression())

    def _selected(self, metric: str, *, is_range: bool) -> Vector:
        matchers = list(self._matchers()) if self._peek() == "{" else []
        if is_range and self._next()[0] != "range":
            raise ValueError(f"{metric} has no range")
        after = _series(self._window.after, metric, matchers)
        if not is_range:
            return after
        before = _series(self._window.before, metric, matchers)
        # A series that was scraped once has no rate. One that is lower than before began anew.
        return {
            labels: value - (before[labels] if before[labels] <= value else 0)
            for labels, value in after.items()
            if labels in before
        }

    def _matchers(self) -> Iterable[Matcher]:
        self._expect("{")
        while self._peek() != "}":
            (_, label), (_, operator), (_, value) = self._next(), self._next(), self._next()
            yield Matcher(label, operator, value.strip('"'))
            if self._peek() == ",":
                self._next()
        self._expect("}")

    def _names(self) -> frozenset[str]:
        self._expect("by")
        self._expect("(")
        found = set[str]()
        while (token := self._next()[1]) != ")":
            found |= {token} - {","}
        return frozenset(found)

    def _in_brackets(self, read: Callable[[], Vector]) -> Vector:
        self._expect("(")
        found = read()
        self._expect(")")
        return found

    def _expect(self, wanted: str) -> None:
        if (found := self._next()[1]) != wanted:
            raise ValueError(f"{found} where {wanted} should be")

    def _next(self) -> tuple[str, str]:
        if self.is_at_end:
            raise ValueError("the query ends too soon")
        self._at += 1
        return self._tokens[self._at - 1]

    def _peek(self) -> str:
        return "" if self.is_at_end else self._tokens[self._at][1]


def _series(scrape: Scrape, metric: str, matchers: list[Matcher]) -> Vector:
    return {
        frozenset(sample.labels.items()): sample.value
        for sample in scrape.matching(metric)
        if all(one.accepts(sample.labels.get(one.label, "")) for one in matchers)
    }


def summed(vector: Vector, grouping: frozenset[str]) -> Vector:
    """The sum of all series that have the same values of these labels."""
    found: defaultdict[Labels, float] = defaultdict(float)
    for labels, value in vector.items():
        found[frozenset(pair for pair in labels if pair[0] in grouping)] += value
    return dict(found)


def divided(one: Vector, other: Vector) -> Vector:
    """Each series by the one with the same labels; those that stand alone are left out."""
    return {
        labels: value / other[labels] if other[labels] else math.nan
        for labels, value in one.items()
        if labels in other
    }


def quantile(share: float, vector: Vector) -> Vector:
    """The value below which a share of a histogram's observations lies, on a line between a bucket's two bounds."""
    histograms: defaultdict[Labels, dict[float, float]] = defaultdict(dict)
    for labels, value in vector.items():
        bounds = dict(labels)
        if "le" in bounds:
            rest = frozenset(pair for pair in labels if pair[0] != "le")
            histograms[rest][float(bounds["le"])] = value
    return {labels: _within(share, buckets) for labels, buckets in histograms.items()}


def _within(share: float, buckets: Mapping[float, float]) -> float:
    bounds = sorted(buckets)
    if bounds[-1] != math.inf or len(bounds) < 2 or not buckets[math.inf]:
        return math.nan
    rank = share * buckets[math.inf]
    at = next(index for index, bound in enumerate(bounds) if buckets[bound] >= rank)
    if bounds[at] == math.inf:
        return bounds[-2]
    low, below = (bounds[at - 1], buckets[bounds[at - 1]]) if at else (0.0, 0.0)
    return low + (bounds[at] - low) * (rank - below) / (buckets[bounds[at]] - below)
