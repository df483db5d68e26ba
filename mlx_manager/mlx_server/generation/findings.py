"""What a parser finds in an answer, written into the request's timeline."""

from __future__ import annotations

import time

from mlx_manager.chat.events import Finding, FindingKind, Interval, Parsing, Timeline

# As many events as a span may have: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
MOST_FINDINGS = 128
# A text with many lines, which a model didn't escape, must not keep out what else there is.
MOST_BEFORE_REPAIRS = 64


class Findings:
    """Takes a parser's notes. What happens between the first and the last of them is the answer's `parse` phase."""

    def __init__(self, family: str, timeline: Timeline) -> None:
        self._family = family
        self._timeline = timeline

    def note(self, kind: FindingKind, detail: str | int | None) -> None:
        """Something was found now."""
        parsing = self._timeline.parsing
        if parsing is None:
            parsing = self._timeline.parsing = Parsing(self._family, Interval.begin())
        most = MOST_BEFORE_REPAIRS if kind == "tool_call_repaired" else MOST_FINDINGS
        if len(parsing.findings) < most:
            parsing.findings.append(Finding(kind, detail, time.time_ns()))
        parsing.interval.end()
