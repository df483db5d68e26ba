"""The documentation says what the code does: every setting, endpoint, parameter, error code and metric."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import mlx_manager
from mlx_manager import errors
from mlx_manager.mlx_server.api.admin_schemas import BatchSpeed, Memory, ModelState, RequestState
from mlx_manager.observability import attributes
from tools.document import DOCS, documented


@pytest.mark.parametrize("page", ["settings.md", "api.md"])
def test_a_page_holds_what_the_code_knows(page: str) -> None:
    text = (DOCS / page).read_text()
    assert documented(text, page) == text, "run: python -m tools.document"


def drawn_errors(kind: type[errors.MlxManagerError]) -> Iterator[type[errors.MlxManagerError]]:
    for child in kind.__subclasses__():
        yield child
        yield from drawn_errors(child)


def test_every_error_code_of_the_api_is_listed_with_its_status() -> None:
    text = (DOCS / "api.md").read_text()
    for error in drawn_errors(errors.MlxManagerError):
        if error.__module__ == errors.__name__:
            assert f"| `{error.code}` | {error.status} |" in text


@pytest.mark.parametrize("kind", [ModelState, Memory, RequestState, BatchSpeed])
def test_every_field_that_administration_tells_is_described(kind: type[BaseModel]) -> None:
    text = (DOCS / "api.md").read_text()
    section = text[text.index("## Administration") : text.index("## The audit log")]
    assert [name for name in kind.model_fields if f"`{name}`" not in section] == []


PACKAGE = Path(mlx_manager.__file__).parent
NAME = re.compile(r"(?:gen_ai|mlx)\.[a-z_.]*")


def emitted_names() -> set[str]:
    values = [value for name, value in vars(attributes).items() if name.isupper()]
    metrics = {value.name for value in values if isinstance(value, attributes.Metric)}
    return metrics | {value for value in values if isinstance(value, str)}


def test_every_name_of_telemetry_is_one_that_something_writes() -> None:
    own = Path(attributes.__file__)
    code = "\n".join(file.read_text() for file in PACKAGE.rglob("*.py") if file != own)
    words = set(re.findall(r"\w+", code))
    constants = {
        name
        for name, value in vars(attributes).items()
        if name.isupper() and isinstance(value, str | attributes.Metric)
    }
    assert constants - words == set()


def test_telemetry_lists_every_name_that_is_emitted_and_no_other() -> None:
    quoted = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", (DOCS / "telemetry.md").read_text()))
    ours = {name for name in quoted if name.startswith(("gen_ai.", "mlx."))}
    assert emitted_names() - quoted == set(), "emitted, and not described"
    assert ours - emitted_names() == set(), "described, and never emitted"


def test_the_tables_of_spans_have_nothing_that_is_never_emitted() -> None:
    """But for what the libraries write: tests of the conventions compare that with a running server."""
    spans = (DOCS / "telemetry.md").read_text().split("\n## Spans\n", 1)[1].split("\n## ", 1)[0]
    ours = spans.split("### On HTTP and SQL spans", maxsplit=1)[0]
    firsts = [line.split("|")[1] for line in ours.splitlines() if line.startswith("| `")]
    listed = {name for first in firsts for name in re.findall(r"`([a-z_.]+)`", first)}
    assert len(listed) > 80
    # The span that Anthropic's SDK makes itself.
    assert listed - emitted_names() == {"anthropic.messages.create"}


# What others write and we only read or remove, and a type of mlx.
NOT_OURS = {
    *("gen_ai.tool.call.arguments", "gen_ai.tool.call.result"),
    *("gen_ai.prompt.", "gen_ai.completion.", "mlx.core."),
}


def test_names_of_telemetry_stand_in_one_place() -> None:
    """A name that is written down elsewhere would be emitted and missed by the test above."""
    for file in PACKAGE.rglob("*.py"):
        if file != Path(attributes.__file__):
            texts = [
                node.value
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.Constant)
            ]
            found = {text for text in texts if isinstance(text, str) and NAME.fullmatch(text)}
            assert found <= NOT_OURS, file


ROW = re.compile(
    r"^\| `(?P<name>[a-z_.]+)` \| (?P<kind>counter|gauge|histogram), (?P<unit>\S+) \| [^|]+ \|(?P<buckets>[^|]*)\|$",
    re.MULTILINE,
)


def test_telemetry_lists_every_metric_with_its_kind_unit_and_buckets() -> None:
    rows = list(ROW.finditer((DOCS / "telemetry.md").read_text()))
    metrics = {m.name: m for m in vars(attributes).values() if isinstance(m, attributes.Metric)}
    assert sorted(row["name"] for row in rows) == sorted(metrics)
    for row in rows:
        metric, buckets = metrics[row["name"]], row["buckets"].strip()
        assert (row["kind"], row["unit"]) == (metric.kind, metric.unit), row["name"]
        assert bool(buckets) == bool(metric.buckets), row["name"]
        assert tuple(bounds_of(buckets)) == (metric.buckets or ()), row["name"]


def bounds_of(cell: str) -> Iterator[float]:
    """The bounds that a cell says: `1 2 5`, or a series like `0.01 × 2ⁿ up to 81.92`."""
    if (series := re.fullmatch(r"(?:([\d.]+) × )?(\d)ⁿ up to ([\d.]+)", cell)) is None:
        yield from map(float, cell.split())
        return
    bound, last = float(series[1] or 1), float(series[3])
    while bound <= last:
        yield bound
        bound *= float(series[2])
