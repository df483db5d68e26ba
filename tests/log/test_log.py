"""Log lines: one format for everybody, ids on each, and nothing in them that quotes what came in."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from mlx_manager.log import (
    JsonLines,
    LogFormat,
    TextLines,
    configure_logging,
    event_of,
    frames_of,
)
from mlx_manager.observability.context import current_ids
from mlx_manager.observability.redaction import clean_any
from tests.observability.conftest import Python

SECRET = "marked-secret-4711"
IDS = {"request_id": "r-1", "trace_id": "a" * 32, "span_id": "b" * 16}
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ")


class Lines:
    """A logger and what it wrote, in one format."""

    def __init__(self, kind: type[TextLines] | type[JsonLines], ids: Mapping[str, str]) -> None:
        self._written = io.StringIO()
        handler = logging.StreamHandler(self._written)
        handler.setFormatter(kind(lambda: ids, clean_any))
        self.logger = logging.Logger("mlx_manager.test")
        self.logger.addHandler(handler)

    @property
    def text(self) -> str:
        return self._written.getvalue()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


def text_lines(ids: Mapping[str, str] = IDS) -> Lines:
    return Lines(TextLines, ids)


def json_lines(ids: Mapping[str, str] = IDS) -> Lines:
    return Lines(JsonLines, ids)


def test_a_text_line_is_aligned_and_has_its_ids() -> None:
    lines = text_lines()
    lines.logger.info("model loaded %(model)s bytes=%(bytes)d", {"model": "a/b", "bytes": 3})
    lines.logger.warning("audit log loses rows, %d so far", 2)

    first, second = lines.text.splitlines()
    ids = f"request_id=r-1 trace_id={'a' * 32} span_id={'b' * 16}"
    assert TIME.match(first)
    assert first[24:] == f"INFO  mlx_manager.test: model loaded a/b bytes=3 {ids}"
    assert second[24:] == f"WARN  mlx_manager.test: audit log loses rows, 2 so far {ids}"


def test_a_json_line_is_one_object_with_every_field() -> None:
    lines = json_lines()
    lines.logger.info(
        "model loaded %(model)s bytes=%(bytes)d", {"model": "a/b", "bytes": 3}, extra={"host": "h"}
    )

    (line,) = lines.objects
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == IDS | {
        "level": "info",
        "logger": "mlx_manager.test",
        "event": "model loaded",
        "message": "model loaded a/b bytes=3",
        "model": "a/b",
        "bytes": 3,
        "host": "h",
    }


def test_a_line_outside_of_a_request_has_no_ids() -> None:
    text, lines = text_lines({}), json_lines({})
    text.logger.info("hello")
    lines.logger.info("hello")

    assert text.text.endswith("mlx_manager.test: hello\n")
    assert lines.objects[0].keys() == {"time", "level", "logger", "event", "message"}


def test_an_id_that_the_message_names_is_not_said_twice() -> None:
    lines = text_lines({"request_id": "r-1"})
    lines.logger.info("request_id=%(request_id)s", {"request_id": "r-1"})

    assert lines.text.count("r-1") == 1


@pytest.mark.parametrize("make", [text_lines, json_lines])
def test_an_exception_is_its_type_and_frames_and_not_what_it_says(make: Any) -> None:
    lines = make()
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ValueError(f"can't read {SECRET}") from error
    except ValueError:
        lines.logger.exception("it failed")

    assert "ValueError" in lines.text
    assert "KeyError" in lines.text
    assert "test_log.py" in lines.text
    assert "test_an_exception_is_its_type" in lines.text
    assert SECRET not in lines.text


def test_a_stack_that_comes_as_a_field_stands_below_the_line_or_beside_the_message() -> None:
    fields = {"error": "ValueError", "stack": 'ValueError\n  File "x.py", line 3, in do'}
    text, lines = text_lines({}), json_lines({})
    for one in (text, lines):
        one.logger.error("request failed: %(error)s\n%(stack)s", fields)

    head, *stack = text.text.splitlines()
    assert head.endswith("request failed: ValueError")
    assert stack == ["    ValueError", '      File "x.py", line 3, in do']
    assert lines.objects[0]["message"] == "request failed: ValueError"
    assert lines.objects[0]["stack"] == fields["stack"]


def test_an_exception_that_causes_itself_ends() -> None:
    error = ValueError()
    error.__context__ = error

    assert frames_of(error) == "ValueError"


@pytest.mark.parametrize("make", [text_lines, json_lines])
@pytest.mark.parametrize(
    ("template", "arguments", "extra"),
    [
        (f"calling http://host/path?api_key={SECRET}", (), {}),
        ("calling %s", (f"http://user:{SECRET}@host/",), {}),
        ("sent %s", (f"Authorization: Bearer {SECRET}",), {}),
        ("sent %(authorization)s", ({"authorization": f"token={SECRET}"},), {}),
        ("key %s", (f"sk-{SECRET}",), {}),
        ("hello", (), {"password": SECRET}),
        ("hello", (), {"client_secret": SECRET}),
        ("hello", (), {"headers": {"cookie": SECRET}}),
        ("hello", (), {"gen_ai.input.messages": SECRET}),
        ("hello", (), {"error": ValueError(SECRET)}),
    ],
)
def test_secrets_are_redacted_as_in_spans(
    make: Any, template: str, arguments: tuple[Any, ...], extra: dict[str, Any]
) -> None:
    lines = make()
    lines.logger.info(template, *arguments, extra=extra)

    assert lines.text.count("\n") == 1
    assert SECRET not in lines.text


def test_no_text_can_pass_for_a_line_of_its_own_or_move_the_cursor() -> None:
    text, lines = text_lines({}), json_lines({})
    hostile = "a\n2026-11-24 10:00:00.000 INFO  root: forged\x1b[2J\r\x85b"
    for one in (text, lines):
        one.logger.info("model %(model)s", {"model": hostile})

    assert text.text.splitlines()[1].startswith("    2026")
    assert not set(text.text) & set("\x1b\r\x85\u2028")
    assert lines.text.count("\n") == 1
    assert lines.objects[0]["model"] == hostile


@pytest.mark.parametrize("make", [text_lines, json_lines])
def test_what_has_no_encoding_and_what_is_endless_can_be_written(make: Any) -> None:
    lines = make()
    lines.logger.info("%s", "\ud83d" + "x" * 100_000)

    lines.text.encode()
    assert len(lines.text) < 3000


@pytest.mark.parametrize(
    ("template", "event"),
    [
        ("model loaded %(model)s", "model loaded"),
        ("audit log loses rows, %d so far", "audit log loses rows"),
        ("audit log can't be written (%s); its rows wait", "audit log can't be written"),
        ("request failed: %(error)s\n%(stack)s", "request failed"),
        ("audit log is written again", "audit log is written again"),
        ("%(method)s", ""),
    ],
)
def test_an_event_is_what_stands_before_the_first_field(template: str, event: str) -> None:
    assert event_of(template) == event


@pytest.fixture
def restored() -> Iterator[None]:
    """Give the process its logging back."""
    root, stream = logging.getLogger(), sys.stderr
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in ("mlx_manager", "uvicorn")}
    yield
    sys.stderr = stream
    logging.captureWarnings(False)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_ours_uvicorns_libraries_and_pythons_warnings_come_out_as_one_format(
    log_format: LogFormat,
) -> None:
    sys.stderr = written = io.StringIO()
    configure_logging("info", log_format, current_ids, clean_any)
    logging.getLogger("mlx_manager.x").info("ours")
    coloured = {"color_message": "\x1b[32muvicorn's"}
    logging.getLogger("uvicorn.error").info("uvicorn's", extra=coloured)
    logging.getLogger("library").warning("a library's")
    logging.getLogger("library").info("too quiet")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn(f"bad token={SECRET}", stacklevel=1)

    lines = [line for line in written.getvalue().splitlines() if not line.startswith("    ")]
    assert len(lines) == 4
    if log_format == "json":
        assert [json.loads(line)["logger"] for line in lines] == [
            "mlx_manager.x",
            "uvicorn.error",
            "library",
            "py.warnings",
        ]
    else:
        assert all(TIME.match(line) for line in lines)
    assert SECRET not in written.getvalue()
    assert "[32m" not in written.getvalue()


def test_a_line_that_is_written_in_a_span_leads_to_it(python: Python) -> None:
    done = python("""
import json, logging, sys
from mlx_manager.log import configure_logging
from mlx_manager.observability.context import current_ids, tag_request
from mlx_manager.observability.redaction import clean_any
from mlx_manager.observability.setup import TelemetryOptions, configure
configure(TelemetryOptions("test"))
configure_logging("info", "json", current_ids, clean_any)
import logfire
with logfire.span("outer") as outer:
    tag_request("r-1")
    logging.getLogger("mlx_manager.x").info("inside")
context = outer.get_span_context()
print(json.dumps([f"{context.trace_id:032x}", f"{context.span_id:016x}"]))
logging.getLogger("mlx_manager.x").info("outside")
""")
    inside, outside = map(json.loads, done.stderr.splitlines())

    assert [inside["trace_id"], inside["span_id"]] == json.loads(done.stdout)
    assert inside["request_id"] == "r-1"
    assert "trace_id" not in outside
