"""Take secrets and quoted input out of spans and logs, in front of every sink, and cut what is too long for them.

Logfire's own scrubbing misses query strings, exception texts and status descriptions, and removes harmless names
(`session_id`, `auth_provider`), so it is off and this stands in its place. `Redactor` must be the first processor:
Logfire hands every processor the same finished copy of a span, and those behind see what the first has left of it.

All of this runs on the event loop and on text that clients choose: each pattern takes linear time, on a bounded text.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from urllib.parse import urlsplit, urlunsplit

from logfire.types import ExceptionCallbackHelper
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import Status
from opentelemetry.util.types import AnyValue, AttributeValue

from mlx_manager.observability import attributes as names
from mlx_manager.observability.known_secrets import (
    REDACTED,
    holds_secret,
    is_secret,
    on_change,
    without_secrets,
)

Attributes = dict[str, AttributeValue]

CUT = "…"

# In characters; nothing of ours needs more.
TEXT_LENGTH = 1000
_LENGTHS = {"exception.stacktrace": 4000, "db.query.text": 4000, "logfire.json_schema": 4000}
_NAME_LENGTH = 200
_MOST_ITEMS = 32
_MOST_NUMBERS = 512

_URLS = frozenset({"url.full", "url.original", "http.url", "http.target", "url.path"})
_DROPPED = frozenset({"url.query", "url.fragment", "exception.logfire.data"})
# What was said; nothing here records it, but an SDK can be told to by an environment variable.
_CONTENT = names.CONTENT | {"gen_ai.tool.call.arguments", "gen_ai.tool.call.result"}
_DROPPED_PREFIXES = (
    "http.request.header.",
    "http.response.header.",
    "db.query.parameter.",
    "db.statement.parameters",
)
_EXCEPTION_TEXTS = ("exception.message", "exception.stacktrace")

_SECRET_WORDS = (
    r"authorization|cookie|set[-_]cookie|api[-_]?key|apikey|access[-_]?key|secret(?:[-_]?key)?|client[-_]?secret"
    r"|password|passwd|passphrase|(?:access|refresh|id|auth|bearer|session|csrf|api)?[-_]?token|signature|sig"
    r"|credential|credentials|private[-_]?key"
)
_SECRET_NAME = re.compile(rf"(?:^|[._-])(?:{_SECRET_WORDS})$", re.IGNORECASE)
# A cheap look first: most values hold none of these and are not searched any further.
_SUSPECT = re.compile(r"[=?]|://|sk-|bearer|basic", re.IGNORECASE)
# What a secret ends with (`@`, `=`) may lie behind the cut: a text's last word counts as one when it could be one.
_SECRET_TEXT = re.compile(
    rf"(?P<pair>\b(?:{_SECRET_WORDS}|key)=)[^\s&'\"<>]+"
    # Begins behind the scheme: looking for its first letter would read a long run of `a.a.` once per letter.
    rf"|(?P<url>://)[^\s/@'\"]+(?:@|{CUT}\Z)"
    r"|(?P<scheme>\b(?:bearer|basic)\s+)[^\s'\",]+"
    rf"|(?P<key>\bsk-)(?:[A-Za-z0-9_-]{{6,}}|[A-Za-z0-9_-]*{CUT}\Z)",
    re.IGNORECASE,
)
# Takes a whole word, with or without `=`: a search for it would begin anew at each `?`.
_QUERY = re.compile(r"(?<=[\w/])\?([^\s'\"]+)")


class Redactor(SpanProcessor):
    """Cleans a span as it starts, for sinks that show running spans, and again when it has ended."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Blank what a running span must not show; an attribute can't be removed from it, only replaced."""
        if (span_name := clean_text(span.name)) != span.name:
            span.update_name(span_name)
        for name, value in (span.attributes or {}).items():
            clean = clean_value(name, value)
            if clean is not value:
                span.set_attribute(name, REDACTED if clean is None else clean)

    def on_end(self, span: ReadableSpan) -> None:
        """Rewrite the copy that all later processors are given."""
        # There is no public way to change a span that has ended. This object is no live span: Logfire made it
        # for its processors, of which this is the first.
        span._name = clean_text(span.name)
        span._attributes = clean_span_attributes(span._name, span.attributes or {})
        if span.events:
            span._events = [_clean_event(event) for event in span.events]
        if span.status.description is not None:
            span._status = Status(span.status.status_code)

    def shutdown(self) -> None:
        """Nothing is held back."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back."""
        return True


class LogRedactor(LogRecordProcessor):
    """The same for log records that libraries send through OpenTelemetry."""

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Clean attributes and body in place."""
        record = log_record.log_record
        if record.attributes:
            record.attributes = {
                name: clean
                for name, value in record.attributes.items()
                if name not in _EXCEPTION_TEXTS and (clean := clean_any(name, value)) is not None
            }
        record.body = clean_any("", record.body)

    def shutdown(self) -> None:
        """Nothing is held back."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back."""
        return True


def keep_only_frames(recorded: ExceptionCallbackHelper) -> None:
    """Record which exception it was and where it came from, but nothing that it says.

    Logfire calls this for each exception that any span records. The frames are read from the traceback object: in
    the formatted text, a message that quotes a pasted traceback could not be told from the real one.
    """
    recorded.no_record_exception()
    error = recorded.exception
    recorded.span.add_event(
        "exception",
        {
            "exception.type": type(error).__qualname__,
            "exception.message": REDACTED,
            "exception.stacktrace": _frames(error),
        },
    )


def clean_attributes(attributes: Mapping[str, AttributeValue]) -> Attributes:
    """All attributes that may leave, with their values made safe."""
    return {
        name: clean
        for name, value in attributes.items()
        if (clean := clean_value(name, value)) is not None
    }


def clean_span_attributes(name: str, attributes: Mapping[str, AttributeValue]) -> Attributes:
    """The same for a span, whose clean name is `name`."""
    return _without_refused_path(clean_attributes(attributes), name)


def clean_event_attributes(attributes: Mapping[str, AttributeValue]) -> Attributes:
    """The same for an event: of an exception it keeps what it was, not what it said."""
    clean = clean_attributes(attributes)
    if clean.get("exception.message", REDACTED) != REDACTED:
        for name in _EXCEPTION_TEXTS:
            clean.pop(name, None)
    return clean


def clean_value(name: str, value: AttributeValue) -> AttributeValue | None:
    """`value` itself when it is harmless, another one when it isn't, None when the attribute has to go."""
    if len(name) > _NAME_LENGTH or _is_dropped(name):
        return None
    if isinstance(value, str):
        return _clean_string(name, value)
    if isinstance(value, Sequence):
        return _clean_items(name, value)
    # Protobuf's integers have 64 bits. Not a `range`: it would count all its numbers for a value of a subclass.
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return CUT
    return REDACTED if isinstance(value, int) and is_secret(value) else value


def clean_any(name: str, value: AnyValue) -> AnyValue | None:
    """The same for a log record's body or attribute, which may be nested."""
    if len(name) > _NAME_LENGTH or _is_dropped(name):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return None if value is None else clean_value(name, value)
    if _is_secret(name):
        return REDACTED
    if isinstance(value, Mapping):
        items = ((key, clean_any(key, item)) for key, item in islice(value.items(), _MOST_ITEMS))
        return {key: clean for key, clean in items if clean is not None}
    if isinstance(value, bytes):
        return without_secrets(value.decode("latin-1"), TEXT_LENGTH).encode("latin-1")
    return [clean_any(name, item) for item in value[:_MOST_ITEMS]]


def clean_text(text: str, length: int = TEXT_LENGTH) -> str:
    """Free text without this process's own keys and what looks like a key, a password, a token or a query string.

    Cut behind `length` characters, and free of what has no encoding: the OTLP exporter would drop a whole batch.
    """
    if len(text) > length or holds_secret(text):
        text = _shortened(text, length)
    text = _encodable(text)
    if not _SUSPECT.search(text):
        return text
    return _QUERY.sub(_drop_query, _SECRET_TEXT.sub(_keep_label, text))


def clean_url(url: str) -> str:
    """The URL without user, password, query and fragment."""
    if "?" not in url and "@" not in url and "#" not in url:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return REDACTED
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


# Names are few and values many: each name is looked at once.
@lru_cache(maxsize=4096)
def _is_dropped(name: str) -> bool:
    return (
        name in _DROPPED
        or name in _CONTENT
        or name.startswith(_DROPPED_PREFIXES)
        or _encodable(name) != name
        or holds_secret(name)
    )


on_change(_is_dropped.cache_clear)


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _clean_string(name: str, value: str) -> str:
    if _is_secret(name):
        return REDACTED
    length = _LENGTHS.get(name, TEXT_LENGTH)
    if name in _URLS:
        value = clean_url(_shortened(value, length))
    return clean_text(value, length)


def _clean_items(name: str, items: Sequence[str | bool | int | float]) -> AttributeValue:
    kept = items if len(items) <= _MOST_NUMBERS else items[:_MOST_NUMBERS]
    if any(issubclass(kind, str) for kind in set(map(type, kept))):
        return tuple(_clean_string(name, str(item)) for item in kept[:_MOST_ITEMS])
    if any(isinstance(item, int) and is_secret(item) for item in kept):
        return tuple(str(clean_value(name, item)) for item in kept[:_MOST_ITEMS])
    return kept  # type: ignore[return-value]  # numbers of one kind, as they came


def _shortened(text: str, length: int) -> str:
    """Without known secrets, also the one that the cut would halve."""
    whole = len(text) <= length
    return without_secrets(text, length) + ("" if whole else CUT)


def _encodable(text: str) -> str:
    """The text with half surrogate pairs, which JSON can carry and UTF-8 can't, replaced or joined."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _keep_label(match: re.Match[str]) -> str:
    return next((group for group in match.groups() if group), "") + REDACTED


def _drop_query(match: re.Match[str]) -> str:
    is_query = "=" in match[1] or match[1].endswith(CUT)
    return f"?{REDACTED}" if is_query else match[0]


def _without_refused_path(attributes: Attributes, name: str) -> Attributes:
    """A path that was refused may hold anything: the route says enough about it."""
    status = attributes.get(names.HTTP_STATUS)
    if isinstance(status, int) and status >= 400 and names.HTTP_ROUTE in attributes:
        attributes[names.URL_PATH] = attributes[names.HTTP_ROUTE]
        attributes[names.MESSAGE] = name
    return attributes


def _clean_event(event: Event) -> Event:
    attributes = clean_event_attributes(event.attributes or {})
    return Event(clean_text(event.name), attributes, event.timestamp)


def _frames(error: BaseException) -> str:
    frames = traceback.walk_tb(error.__traceback__)
    text = "\n".join(
        f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_qualname}'
        for frame, line in frames
    )
    # The innermost stand last and say most.
    length = _LENGTHS["exception.stacktrace"]
    return text if len(text) <= length else CUT + text[1 - length :]
