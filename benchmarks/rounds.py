"""Measure contenders side by side: in each round every one of them, in an order that changes from round to round."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from benchmarks.contenders import Contender, Measured
from benchmarks.work import Load

Say = Callable[[str], None]
T = TypeVar("T")
_seeds = itertools.count()


@dataclass(slots=True)
class Series:
    """What one contender did with one load, round by round."""

    name: str
    load: Load
    rounds: list[Measured] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Every answer of every round that was not right."""
        return [text for measured in self.rounds for text in measured.answers.failures]

    def median(self, figure: Callable[[Measured], float]) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(map(figure, self.rounds))

    def compared(self, base: Series, figure: Callable[[Measured, Measured], float]) -> list[float]:
        """Return a figure of this and `base` for each round: what is seconds apart is compared, no more."""
        return [figure(own, other) for own, other in zip(self.rounds, base.rounds, strict=True)]


def throughput_ratio(own: Measured, base: Measured) -> float:
    """Return tokens per second as a share of the other's."""
    return own.tokens_per_s / base.tokens_per_s


def extra_cpu_s_per_token(own: Measured, base: Measured) -> float:
    """Return CPU seconds per token beyond the other's."""
    return own.cpu_s_per_token - base.cpu_s_per_token


def measure(
    contenders: Sequence[Contender], load: Load, rounds: int, say: Say
) -> dict[str, Series]:
    """Run `load` on every contender, once to warm up and then `rounds` times."""
    series = {one.name: Series(one.name, load) for one in contenders}
    for contender in contenders:
        contender.run(load.warm_up(), next(_seeds))
    for number, order in enumerate(orders(contenders, rounds), start=1):
        say(f"{load.clients} clients, round {number} of {rounds}")
        for contender in order:
            series[contender.name].rounds.append(contender.run(load, next(_seeds)))
    return series


def orders(contenders: Sequence[T], rounds: int) -> Iterator[Iterable[T]]:
    """Yield an order for each round: each forwards and then backwards, then rotated by one.

    Twice as many rounds as there are contenders have each of them in each place twice.
    """
    for number in range(rounds):
        at = number // 2 % len(contenders)
        order = [*contenders[at:], *contenders[:at]]
        yield order if number % 2 == 0 else reversed(order)
