"""The keys that this process was given itself: text that must reach no sink, whatever it looks like.

Redaction is asked from wherever text leaves, the log's formatter among them; so what is known belongs to the process.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, quote_plus, unquote, urlsplit

REDACTED = "[redacted]"
# Shorter ones are words, which texts hold anyway.
SHORTEST = 8

_OTLP_HEADERS = re.compile(r"OTEL_EXPORTER_OTLP_(?:[A-Z]+_)?HEADERS")
_URLS = re.compile(r"OTEL_EXPORTER_OTLP_(?:[A-Z]+_)?ENDPOINT|LOGFIRE_BASE_URL|(?:HTTPS?|ALL)_PROXY")
_KEYS = frozenset({"HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"})

_lock = threading.Lock()
_held: tuple[frozenset[str], ...] = ()
# What to look for, each in every spelling; the longest first, since one may begin with another.
_spellings: tuple[str, ...] = ()
_pattern = re.compile("")
_shortest = _longest = 0
_listeners: list[Callable[[], None]] = []


@contextmanager
def kept_out(secrets: Iterable[str]) -> Iterator[None]:
    """Blank `secrets` wherever they stand until the block ends; those below `SHORTEST` characters are left."""
    mine = frozenset(secret for secret in secrets if len(secret) >= SHORTEST)
    keep_out(mine)
    try:
        yield
    finally:
        with _lock:
            kept = list(_held)
            kept.remove(mine)
            _look_for(tuple(kept))


def keep_out(secrets: Iterable[str]) -> None:
    """The same for as long as the process lives."""
    mine = frozenset(secret for secret in secrets if len(secret) >= SHORTEST)
    with _lock:
        _look_for((*_held, mine))


def on_change(listener: Callable[[], None]) -> Callable[[], None]:
    """Call `listener` when other secrets are looked for: for what remembers answers."""
    _listeners.append(listener)
    return listener


def holds_secret(text: str) -> bool:
    """Whether a secret stands in `text`. Most texts are shorter than any."""
    if not _shortest or len(text) < _shortest:
        return False
    # Neither the pattern nor `any`: this is asked for each text of each span.
    for spelling in _spellings:  # noqa: SIM110
        if spelling in text:
            return True
    return False


def without_secrets(text: str, length: int) -> str:
    """At most the first `length` characters of `text`, each secret that begins in them blanked whole."""
    if len(text) > length:
        return _first(text, length)
    return _pattern.sub(REDACTED, text) if holds_secret(text) else text


def secrets_in(environ: Mapping[str, str]) -> Iterator[str]:
    """The secrets in variables that others than the settings read: tokens, headers of exporters, passwords in URLs."""
    for name, value in environ.items():
        upper = name.upper()
        if upper in _KEYS:
            yield value.strip()
        elif upper == "LOGFIRE_TOKEN":
            yield from (part.strip() for part in value.split(","))
        elif _OTLP_HEADERS.fullmatch(upper):
            yield from _header_values(value)
        elif _URLS.fullmatch(upper):
            yield from password_of(value)


def password_of(url: str) -> Iterator[str]:
    """The password in a URL, as it is written there and as it is meant; none in one without."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return
    if password:
        yield from {password, unquote(password)}


def _header_values(headers: str) -> Iterator[str]:
    """The values in `name=value,name=value`, and what stands in them behind a scheme such as `Bearer`."""
    for pair in headers.split(","):
        value = unquote(pair.partition("=")[2]).strip()
        yield value
        yield value.rpartition(" ")[2]


def _first(text: str, length: int) -> str:
    window, pieces, end = text[: length + _longest], list[str](), 0
    if holds_secret(window):
        for match in _pattern.finditer(window):
            if match.start() >= length:
                break
            pieces += [text[end : match.start()], REDACTED]
            end = match.end()
    return "".join(pieces) + text[end : max(length, end)]


def _look_for(held: tuple[frozenset[str], ...]) -> None:
    global _held, _spellings, _pattern, _shortest, _longest
    found = {spelling for secret in frozenset().union(*held) for spelling in _spelt(secret)}
    spellings = sorted(found, key=lambda one: (-len(one), one))
    _held, _spellings = held, tuple(spellings)
    _pattern = re.compile("|".join(map(re.escape, spellings)))
    _longest = len(spellings[0]) if spellings else 0
    _shortest = len(spellings[-1]) if spellings else 0
    for listener in _listeners:
        listener()


def _spelt(secret: str) -> set[str]:
    """A secret as it is, as paths and queries have it, and as it is quoted in JSON."""
    encoded = secret.encode("utf-8", "surrogatepass")
    quoted = {quote(encoded), quote(encoded, safe=""), quote_plus(encoded)}
    in_json = {json.dumps(secret, ensure_ascii=ascii)[1:-1] for ascii in (True, False)}
    # As a header's bytes are read.
    return {secret, encoded.decode("latin-1"), *quoted, *in_json}
