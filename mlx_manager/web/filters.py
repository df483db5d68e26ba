"""What a person may ask a list for, as it stands in the URL; of traces session and tokens, too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self, get_args
from urllib.parse import urlencode

from mlx_manager.traces.summary import TraceFilter, TraceStatus

STATUSES: tuple[TraceStatus, ...] = get_args(TraceStatus)
# More is asked for by nobody, and less than what SQLite's integers hold, in nanoseconds, too.
MOST = 10**9


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of time up to now that can be chosen."""

    key: str
    name: str
    seconds: int

    @property
    def last(self) -> str:
        """How a sentence says it: the last 6 hours, but the last hour."""
        return f"the last {self.name.removeprefix('1 ')}"


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
    def read(cls, query: Mapping[str, str]) -> Self:
        """Take the fields out of a query string."""
        return cls(**{one.name: query.get(one.name, "").strip()[:200] for one in fields(cls)})

    @property
    def is_empty(self) -> bool:
        """Whether it asks for everything."""
        return self == type(self)()

    @property
    def query(self) -> str:
        """The fields that ask for something, as a query string."""
        asked = {one.name: getattr(self, one.name) for one in fields(self)}
        return urlencode({name: value for name, value in asked.items() if value})

    def address(self, path: str, **more: str) -> str:
        """The address of `path` with this question and what else is given."""
        query = "&".join(part for part in (self.query, urlencode(more)) if part)
        return f"{path}?{query}" if query else path


@dataclass(frozen=True, slots=True)
class TraceQuestion(Question):
    """The same for traces, which know their session and are filtered by tokens, in and out together."""

    min_tokens: str = ""
    max_tokens: str = ""
    session: str = ""

    def to_filter(self, now_ns: int) -> TraceFilter:
        """The question in the words of the trace store."""
        period = period_of(self.time)
        return TraceFilter(
            text=self.text or None,
            status=next((status for status in STATUSES if status == self.status), None),
            model=self.model or None,
            session=self.session or None,
            key_id=self.key or None,
            min_duration_s=milliseconds(self.min_ms),
            max_duration_s=milliseconds(self.max_ms),
            min_tokens=whole_number(self.min_tokens),
            max_tokens=whole_number(self.max_tokens),
            since_ns=now_ns - period.seconds * 10**9 if period else None,
        )


def milliseconds(text: str) -> float | None:
    """Seconds in a number of milliseconds; None for what is no number of them."""
    try:
        seconds = float(text) / 1000
    except ValueError:
        return None
    return min(seconds, MOST) if math.isfinite(seconds) and seconds >= 0 else None


def whole_number(text: str) -> int | None:
    """The number that a text is; None for what is none."""
    return min(int(text), MOST) if text.isascii() and text.isdecimal() else None
