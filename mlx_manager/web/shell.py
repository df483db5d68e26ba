"""What all pages share: templates, the words in them, and the headers that bind the browser."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.templating import Jinja2Templates
from markupsafe import Markup, escape
from starlette.staticfiles import StaticFiles

from mlx_manager import __version__
from mlx_manager.observability.paths import route_path
from mlx_manager.traces.words import bytes_text, count_text, duration_text, plural

HERE = Path(__file__).parent
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of the navigation; `icon` is Lucide's name."""

    path: str
    name: str
    icon: str


PLACES = (
    Place("/", "Overview", "house"),
    Place("/dashboard", "Dashboard", "gauge"),
    Place("/traces", "Traces", "waypoints"),
    Place("/requests", "Requests", "scroll-text"),
    Place("/settings", "Settings", "settings"),
)


class SecureStaticFiles(StaticFiles):
    """Files that browsers ask for anew each time, and mostly get a 304 for."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return the file, not to be sniffed and not to be kept without asking."""
        response = super().file_response(*args, **kwargs)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-cache"
        return response


static_files = SecureStaticFiles(directory=HERE / "static")
templates = Jinja2Templates(directory=HERE / "templates")


def page(
    request: Request, template: str, context: Mapping[str, Any], status_code: int = 200
) -> Response:
    """Return a page in the shell."""
    shell = {
        "version": __version__,
        "places": PLACES,
        "here": _here(route_path(request.scope)),
        "is_open": request.app.state.open_ui,
    }
    return templates.TemplateResponse(
        request, template, {**shell, **context}, status_code=status_code, headers=HEADERS
    )


def _here(path: str) -> str:
    """The place of the navigation that `path` belongs to."""
    first = "/" + path.strip("/").split("/")[0]
    return first if any(place.path == first for place in PLACES) else ""


def moment(ns: int) -> datetime:
    """A time in nanoseconds since the Unix epoch, in UTC."""
    return datetime.fromtimestamp(ns / 1e9, UTC)


def iso(ns: int) -> str:
    """The same for a machine: browsers turn it into local time."""
    return moment(ns).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(ns: int) -> str:
    """The same for a person without a script."""
    return moment(ns).strftime("%d %b %H:%M:%S UTC")


def nanoseconds(when: datetime) -> int:
    """The way back from a moment."""
    return int(when.timestamp() * 1e9)


def ns_text(ns: float) -> str:
    """A duration in nanoseconds, in words."""
    return duration_text(ns / 1e9)


def number_text(value: float) -> str:
    """A number as it stands in a trace, without digits that nobody measured; the export has all of them."""
    if isinstance(value, int) or not isfinite(value):
        return str(value)
    return f"{value:.6f}".rstrip("0").rstrip(".") if abs(value) >= 0.001 else f"{value:.4g}"


def breakable(name: str) -> Markup:
    """A dotted name that may go on in the next line after a dot or an underscore, and not within a word."""
    return Markup(re.sub(r"(?<=[._])(?=[^._])", "<wbr>", str(escape(name))))


templates.env.filters.update(
    {
        "number": number_text,
        "breakable": breakable,
        "duration": duration_text,
        "ns": ns_text,
        "count": count_text,
        "bytes": bytes_text,
        "iso": iso,
        "clock": clock,
    }
)
templates.env.tests["internal"] = lambda name: name.startswith("logfire.")
templates.env.globals["plural"] = plural
templates.env.trim_blocks = True
templates.env.lstrip_blocks = True
