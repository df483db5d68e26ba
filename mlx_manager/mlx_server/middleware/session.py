"""Which conversation a request belongs to, as its client says: `X-Session-ID`, or a member of W3C `baggage`.

Two members are read and no others, and nothing of `baggage` goes on to a cloud: a caller may have put anything there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from starlette.datastructures import Headers

from mlx_manager.observability import attributes as names
from mlx_manager.observability.known_secrets import holds_secret

SESSION_HEADER = "X-Session-ID"
BAGGAGE_MEMBERS = (names.CONVERSATION_ID, "session.id")
# Plain enough to stand in spans, rows and filters, and nothing that looks like a key.
ACCEPTED = re.compile(r"(?!.*\bsk-)[A-Za-z0-9._:@/+-]{1,128}", re.IGNORECASE)
# What every implementation has to take: https://www.w3.org/TR/baggage/#limits
BAGGAGE_LENGTH = 8192
BAGGAGE_COUNT = 64


def session_of(headers: Headers) -> str | None:
    """Return the session's id; None when there is none, or none that is short and plain."""
    offered = [headers.get(SESSION_HEADER, ""), *_in_baggage(headers.getlist("baggage"))]
    return next(
        (value for value in offered if ACCEPTED.fullmatch(value) and not holds_secret(value)), None
    )


def _in_baggage(values: list[str]) -> Iterable[str]:
    if not values or sum(map(len, values)) > BAGGAGE_LENGTH:
        return ()
    found: dict[str, str] = {}
    for member in ",".join(values).split(",")[:BAGGAGE_COUNT]:
        name, _, value = member.partition(";")[0].partition("=")
        found[name.strip()] = unquote(value.strip())
    return (found[name] for name in BAGGAGE_MEMBERS if name in found)
