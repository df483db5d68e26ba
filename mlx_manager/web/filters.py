"""What a person may ask a list for, as it stands in the URL: text, status, model, key, duration, time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args
from urllib.parse import urlencode

from mlx_manager.traces.summary import TraceFilter, TraceStatus

STATUSES: tuple[TraceStatus, ...] = get_args(TraceStatus)


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of time up to now that can be chosen."""

    key: str
    name: str
    seconds: int


PERIODS = (
    Period("15m", "15 minutes", 900),
    Period("1h", "1 hour", 3600),
    Period("6h", "6 hours", 6 * 3600),
    Period("24h", "24 hours", 24 * 3600),
    Period("7d", "7 days", 7 * 24 * 3600),
)


def period_of(key: str, otherwise: str = "") -> Period | None:
    """The stretch of this key, or the one of another key when there is none."""
    found = {period.key: period for period in PERIODS}
    return found.get(key) or found.get(otherwise)


@dataclass(frozen=True, slots=True)
class Question:
    """The fields of a filter form, as they were typed; what can't be understood asks for nothing."""

    text: str = ""
    status: str = ""
    model: str = ""
    key: str = ""
    min_ms: str = ""
    max_ms: str = ""
    time: str = ""

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Question:
        """Take the fields out of a query string."""
        fields = {name: query.get(name, "").strip()[:200] for name in cls.__slots__}
        return cls(**fields)

    @property
    def is_empty(self) -> bool:
        """Whether it asks for everything."""
        return self == Question()

    @property
    def query(self) -> str:
        """The fields that ask for something, as a query string."""
        asked = {name: getattr(self, name) for name in self.__slots__}
        return urlencode({name: value for name, value in asked.items() if value})

    def address(self, path: str, **more: str) -> str:
        """The address of `path` with this question and what else is given."""
        query = "&".join(part for part in (self.query, urlencode(more)) if part)
        return f"{path}?{query}" if query else path

    def to_filter(self, now_ns: int) -> TraceFilter:
        """The same for the trace store."""
        period = period_of(self.time)
        return TraceFilter(
            text=self.text or None,
            status=next((status for status in STATUSES if status == self.status), None),
            model=self.model or None,
            key_id=self.key or None,
            min_duration_s=milliseconds(self.min_ms),
            max_duration_s=milliseconds(self.max_ms),
            since_ns=now_ns - period.seconds * 10**9 if period else None,
        )


def milliseconds(text: str) -> float | None:
    """Seconds in a number of milliseconds; None for what is no number of them."""
    try:
        seconds = float(text) / 1000
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
