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
# Shorter ones are looked for by themselves only, not within words, ids and numbers, which hold them by chance.
SHORTEST = 8
# Still shorter ones, words and numbers are left: without them a trace would say nothing any more.
SHORTEST_ALONE = 4

_OTLP_HEADERS = re.compile(r"OTEL_EXPORTER_OTLP_(?:[A-Z]+_)?HEADERS")
_URLS = re.compile(r"OTEL_EXPORTER_OTLP_(?:[A-Z]+_)?ENDPOINT|LOGFIRE_BASE_URL|(?:HTTPS?|ALL)_PROXY")
_KEYS = frozenset({"HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"})

# A letter may end what stands for a space or the end of a line in a path, a query or JSON.
_NO_WORD_BEFORE = r"(?:(?<![^\W_])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[bfnrt])|(?<=\\u[0-9a-f]{4}))"

_lock = threading.Lock()
_held: tuple[frozenset[str], ...] = ()
# What to look for, each in every spelling; the longest first, since one may begin with another.
_spellings: tuple[str, ...] = ()
# The same of those that have to stand alone, and what finds them there.
_alone: tuple[str, ...] = ()
_alone_pattern = _pattern = re.compile("")
_shortest = _longest = 0
# Those that are numbers, as attributes may have them: of 64 bits.
_numbers: frozenset[int] = frozenset()
_listeners: list[Callable[[], None]] = []


@contextmanager
def kept_out(secrets: Iterable[str]) -> Iterator[None]:
    """Blank `secrets` wherever they stand until the block ends, short ones as far as they can be told from words."""
    mine = frozenset(filter(_can_be_told, secrets))
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
    mine = frozenset(filter(_can_be_told, secrets))
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
    for spelling in _spellings:
        if spelling in text:
            return True
    for spelling in _alone:
        if spelling in text:
            return _alone_pattern.search(text) is not None
    return False


def is_secret(number: int) -> bool:
    """Whether `number` is a secret of digits alone."""
    return number in _numbers


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
    # One more character says whether a short one stands alone.
    window, pieces, end = text[: length + _longest + 1], list[str](), 0
    if holds_secret(window):
        for match in _pattern.finditer(window):
            if match.start() >= length:
                break
            pieces += [text[end : match.start()], REDACTED]
            end = match.end()
    return "".join(pieces) + text[end : max(length, end)]


def _can_be_told(secret: str) -> bool:
    """Whether texts that hold `secret` hold it because somebody wrote it, and not by chance."""
    if len(secret) >= SHORTEST:
        return True
    is_mixed = any(map(str.isalpha, secret)) and not secret.isalpha()
    return len(secret) >= SHORTEST_ALONE and is_mixed


def _look_for(held: tuple[frozenset[str], ...]) -> None:
    global _held, _spellings, _alone, _alone_pattern, _pattern, _shortest, _longest, _numbers
    _held, secrets = held, frozenset[str]().union(*held)
    _numbers = frozenset(int(one) for one in secrets if one.isdecimal() and len(one) < 20)
    _spellings = _spelt_all(secret for secret in secrets if len(secret) >= SHORTEST)
    _alone = _spelt_all(secret for secret in secrets if len(secret) < SHORTEST)
    anywhere, alone = ("|".join(map(re.escape, some)) for some in (_spellings, _alone))
    _alone_pattern = re.compile(rf"{_NO_WORD_BEFORE}(?:{alone})(?![^\W_])")
    _pattern = re.compile("|".join(filter(None, (anywhere, alone and _alone_pattern.pattern))))
    lengths = [len(spelling) for spelling in (*_spellings, *_alone)]
    _longest, _shortest = max(lengths, default=0), min(lengths, default=0)
    for listener in _listeners:
        listener()


def _spelt_all(secrets: Iterable[str]) -> tuple[str, ...]:
    found = {spelling for secret in secrets for spelling in _spelt(secret)}
    return tuple(sorted(found, key=lambda one: (-len(one), one)))


def _spelt(secret: str) -> set[str]:
    """A secret as it is, as paths and queries have it, and as it is quoted in JSON."""
    encoded = secret.encode("utf-8", "surrogatepass")
    quoted = {quote(encoded), quote(encoded, safe=""), quote_plus(encoded)}
    in_json = {json.dumps(secret, ensure_ascii=ascii)[1:-1] for ascii in (True, False)}
    # As a header's bytes are read.
    return {secret, encoded.decode("latin-1"), *quoted, *in_json}
