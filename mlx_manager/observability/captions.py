"""What a person reads for a request: its method and where it went, instead of a bare `GET`."""

from __future__ import annotations

from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from mlx_manager.observability import attributes as names
from mlx_manager.observability.redaction import CUT

# Keys are longer; names of models and of what we serve are shorter.
LONGEST_SEGMENT = 24


def without_long_segments(path: str) -> str:
    """A path that no route has vouched for (yet), without the parts that could be a key."""
    segments = path.split("/")
    return "/".join(part if len(part) <= LONGEST_SEGMENT else CUT for part in segments)


class Captions(SpanProcessor):
    """Captions HTTP spans as they start. Stands behind the `Redactor`, whose cleaned URLs it reads."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Set the message that the console and Logfire show."""
        attributes = span.attributes or {}
        method, path = attributes.get(names.HTTP_METHOD), attributes.get(names.URL_PATH)
        url = attributes.get(names.URL_FULL)
        if isinstance(method, str) and isinstance(path, str):
            span.set_attribute(names.MESSAGE, f"{method} {without_long_segments(path)}")
        elif isinstance(method, str) and isinstance(url, str):
            span.set_attribute(names.MESSAGE, f"{method} {_place(url)}")

    def on_end(self, span: ReadableSpan) -> None:
        """Show the whole path of a request that met a route; shorten that of one that met none."""
        attributes = span.attributes or {}
        path = attributes.get(names.URL_PATH)
        if not isinstance(path, str):
            return
        if names.HTTP_ROUTE not in attributes:
            path = without_long_segments(path)
        caption = f"{attributes.get(names.HTTP_METHOD)} {path}"
        # As in the `Redactor`: this object was made for the processors, and has no public way to be changed.
        span._attributes = {**attributes, names.URL_PATH: path, names.MESSAGE: caption}


def _place(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        # Redaction puts brackets where Python wants an IPv6 address; the request goes on whatever its caption.
        return url
    return parts.netloc + parts.path
