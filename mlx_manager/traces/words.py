"""Figures as people read them: a number, a space, its unit."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """Three digits or so: `4 µs`, `0.4 ms`, `12.3 ms`, `553 ms`, `2.73 s`, `1 min 12 s`, `2 h 5 min`."""
    if seconds == 0:
        return "0 ms"
    if seconds < 0.0000995:
        return f"{seconds * 1e6:.0f} µs" if seconds >= 0.0000005 else "<1 µs"
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        digits = 0 if milliseconds >= 99.95 else 1
        return f"{milliseconds:.{digits}f} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if rest_s else f"{minutes} min"
    hours, rest_min = divmod(minutes, 60)
    return f"{hours} h {rest_min} min" if rest_min else f"{hours} h"


def count_text(number: float) -> str:
    """A whole number with its thousands apart."""
    return f"{number:,.0f}"


def bytes_text(number: float) -> str:
    """In binary units, three digits or so: `512 KiB`, `3.25 GiB`."""
    size, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    digits = 0 if unit == "B" or size >= 99.5 else 1 if size >= 9.95 else 2
    return f"{size:.{digits}f} {unit}"


def plural(number: int, noun: str) -> str:
    """`1 token`, `2,048 tokens`."""
    return f"{count_text(number)} {noun}{'' if number == 1 else 's'}"
