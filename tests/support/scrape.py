"""What Prometheus would read, taken apart by its own parser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar, Sample


@dataclass(frozen=True)
class Scrape:
    """All families of one answer of `/metrics`."""

    families: list[Metric]

    @classmethod
    def parsed(cls, text: str) -> Scrape:
        return cls(list(text_string_to_metric_families(text)))  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, url: str) -> Scrape:
        response = httpx.get(f"{url}/metrics", timeout=30)
        assert response.status_code == 200, response.text
        return cls.parsed(response.text)

    @property
    def samples(self) -> Iterator[Sample]:
        return (sample for family in self.families for sample in family.samples)

    def matching(self, name: str, **labels: str) -> list[Sample]:
        wanted = labels.items()
        return [s for s in self.samples if s.name == name and wanted <= s.labels.items()]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples with that name and these labels; 0 when there is none."""
        return sum(sample.value for sample in self.matching(name, **labels))

    def exemplars(self, name: str) -> list[Exemplar]:
        return [s.exemplar for s in self.matching(name) if s.exemplar is not None]


def rise(before: Scrape, after: Scrape) -> Callable[..., float]:
    """Return what tells by how much a total has risen between the two."""
    return lambda name, **labels: after.total(name, **labels) - before.total(name, **labels)
