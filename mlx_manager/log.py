"""How log lines look: one format on standard error for ours, uvicorn's and every library's, as text or as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

LogFormat = Literal["text", "json"]
# What the running request is known by: `trace_id`, `span_id`, `request_id`, as far as there is one.
Ids = Callable[[], Mapping[str, str]]
# Makes the value of a field safe, by the field's name; None means that it has to go.
Clean = Callable[[str, Any], Any]

OURS = "mlx_manager"
STACK = "stack"
# Redaction knows a stack of frames by this name and leaves it longer than other texts.
_STACK_ATTRIBUTE = "exception.stacktrace"
# Wide enough for all of them, so that what follows stands in one column.
_LEVELS = {"WARNING": "WARN", "CRITICAL": "FATAL"}
# What the library puts on every record, and uvicorn's second copy of its message, in colours.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName"),
    "color_message",
}
# Line breaks are kept, and what follows them indented; the rest could move a terminal's cursor.
_VISIBLE = {
    code: f"\\x{code:02x}"
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029)
    if chr(code) not in "\n\t"
}
_EVENT_END = re.compile(r"[%(:;,\n]")


def configure_logging(level: str, log_format: LogFormat, ids: Ids, clean: Clean) -> None:
    """Print log lines from `level` up; libraries', and Python's warnings, only from warning up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((JsonLines if log_format == "json" else TextLines)(ids, clean))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    for name in (OURS, "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())


def event_of(template: str) -> str:
    """What a log line is searched by: its template up to the first field or punctuation."""
    return _EVENT_END.split(template, maxsplit=1)[0].strip()


def frames_of(error: BaseException) -> str:
    """Where an exception came from: types and frames of it and of its causes, but nothing that they say."""
    return "\n".join(_frame_lines(error))


def _frame_lines(error: BaseException) -> Iterator[str]:
    seen = set[int]()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield type(cause).__qualname__
        for frame, line in traceback.walk_tb(cause.__traceback__):
            code = frame.f_code
            yield f'  File "{code.co_filename}", line {line}, in {code.co_qualname}'
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


class _Lines(logging.Formatter):
    """What both formats take from a record. `ids` is asked where the line is written, inside of the request."""

    def __init__(self, ids: Ids, clean: Clean) -> None:
        super().__init__()
        self._ids = ids
        self._clean = clean

    def message(self, record: logging.LogRecord) -> str:
        """The template with its values; a stack in it is a field of its own."""
        text = record.getMessage()
        if STACK in _arguments(record):
            text = text.split("\n", 1)[0]
        return str(self._clean("message", text))

    def extra(self, record: logging.LogRecord) -> dict[str, Any]:
        """The fields that a logger was given besides those of its template."""
        return self._cleaned(
            {key: value for key, value in vars(record).items() if key not in _STANDARD}
        )

    def arguments(self, record: logging.LogRecord) -> dict[str, Any]:
        """The fields of the template, where they have names."""
        return self._cleaned(
            {str(key): value for key, value in _arguments(record).items() if key != STACK}
        )

    def stack(self, record: logging.LogRecord) -> str:
        """The frames of an exception; empty without one."""
        error = record.exc_info[1] if record.exc_info else None
        stack = frames_of(error) if error else str(_arguments(record).get(STACK, ""))
        return str(self._clean(_STACK_ATTRIBUTE, stack)) if stack else ""

    def ids(self) -> Mapping[str, str]:
        """What the running request is known by."""
        return self._ids()

    def _cleaned(self, fields: dict[str, Any]) -> dict[str, Any]:
        plain = {key: _plain(value) for key, value in fields.items()}
        cleaned = {key: self._clean(key, value) for key, value in plain.items()}
        return {key: value for key, value in cleaned.items() if value is not None}


class TextLines(_Lines):
    """`2026-11-24 10:00:00.123 INFO  mlx_manager.access: GET /v1/models 200 0.002 s request_id=… trace_id=…`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what has more than one is indented, so that no text can pass for a line of its own."""
        level = _LEVELS.get(record.levelname, record.levelname)
        message = self.message(record)
        fields = {**self.extra(record), **self.ids()}
        fields.pop("event", None)
        tail = "".join(
            f" {key}={_word(fields[key])}" for key in fields if _is_new(fields, key, message)
        )
        milliseconds = int(record.msecs)
        seconds = _local_time(int(record.created))
        text = f"{seconds}.{milliseconds:03d} {level:<5} {record.name}: {message}{tail}"
        if stack := self.stack(record):
            text += f"\n{stack}"
        return text if text.isprintable() else text.translate(_VISIBLE).replace("\n", "\n    ")


class JsonLines(_Lines):
    """One object a line: time (RFC 3339), level, logger, event, message, ids, and every other field by its name."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        created = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = {**self.arguments(record), **self.extra(record), **self.ids()}
        if record.name.startswith(OURS):
            line["event"] = fields.pop("event", None) or event_of(str(record.msg))
        line["message"] = self.message(record)
        if stack := self.stack(record):
            fields[STACK] = stack
        return json.dumps(line | {key: fields[key] for key in fields if key not in line})


def _arguments(record: logging.LogRecord) -> Mapping[str, Any]:
    return record.args if isinstance(record.args, Mapping) else {}


def _plain(value: Any) -> Any:
    """What JSON and redaction know; all else by its name, since its text may quote anything."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return type(value).__qualname__


def _is_new(fields: Mapping[str, Any], key: str, message: str) -> bool:
    return f"{key}={fields[key]}" not in message


# Lines come many to the second.
@lru_cache(maxsize=4)
def _local_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _word(value: Any) -> str:
    text = str(value)
    if text.isalnum():
        return text
    return json.dumps(text, ensure_ascii=False) if re.search(r"[\s\"=]", text) or not text else text
