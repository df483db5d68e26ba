"""Every name that isn't marked as our own is one of OpenTelemetry's, and none of those that it has given up.

The conventions are read as their own package publishes them. It marks all of GenAI as moved: those live in a repository
of their own now, for which there is no package yet.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv import attributes as stable_attributes

from mlx_manager.observability import attributes as emitted
from tests.conftest import TINY
from tests.observability.conftest import Python

# Words that aren't the conventions': what we and Logfire's library put under names of our own.
# Constants that name spans and events, or a value.
NO_ATTRIBUTES = ("SPAN_", "EVENT_", "REASON_")
OWN_PREFIXES = ("mlx.", "logfire.")
OWN = {emitted.KIND, emitted.OUTCOME, emitted.SINK}
# Names that the installed package is too old for, each with the reason.
NEWER = {
    # It has `cache_creation`. Anthropic's SDK, which fills its spans itself, says `cache_write`, and so do we.
    emitted.CACHE_WRITE_TOKENS: "GenAI's own conventions have no package yet"
}
# Stable ones are marked, too, in the module of those that aren't; and GenAI's have only moved.
GIVEN_UP = re.compile(r"Deprecated(?!: Moved to the \[OpenTelemetry GenAI)")

# Answers and refusals through a server in a process of its own: every name on their spans, and on what they measure.
CHATS = """
import asyncio
import json
from pathlib import Path
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from mlx_manager.observability.logfire_config import instrument_httpx
from mlx_manager.observability.setup import TelemetryOptions, configure
reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
configure(TelemetryOptions("mlx-test"), metric_readers=[reader], span_processors=[SimpleSpanProcessor(exporter)])
instrument_httpx()

import httpx
from mlx_manager.app import create_app
from tests.support.running import running, settings_for

def ask(url, model, **more):
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
    return httpx.post(url + "/v1/chat/completions", json=body, headers={"X-Session-ID": "s"}, timeout=60).status_code

with running(create_app(settings_for(Path.cwd(), Path(%(model_dir)r)))) as server:
    statuses = [
        ask(server.url, %(model)r, max_tokens=4, seed=1, temperature=0.5, top_p=0.9, top_k=5, stop=["END"]),
        ask(server.url, %(model)r, max_tokens=4, stream=True),
        ask(server.url, "no/such"),
    ]
    asyncio.run(server.close_books())
    data = reader.get_metrics_data()

spans = exporter.get_finished_spans()
points = [
    (metric, point)
    for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
    for point in metric.data.data_points
]
names = {name for span in spans for name in (*span.attributes, *span.resource.attributes)}
names |= {name for span in spans for event in span.events for name in event.attributes}
names |= {name for _, point in points for name in point.attributes}
print(json.dumps([statuses, sorted(names), sorted({(metric.name, metric.unit) for metric, _ in points})]))
print(json.dumps([sorted(spans[0].resource.attributes), sorted({span.name for span in spans}),
                  sorted({event.name for span in spans for event in span.events})]))
"""
PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"


def test_every_name_of_ours_is_in_the_conventions() -> None:
    names = {
        value
        for name, value in vars(emitted).items()
        if name.isupper() and not name.startswith(NO_ATTRIBUTES) and isinstance(value, str)
    }

    assert len({*filter(_is_theirs, names)}) > 30
    assert unknown(names) == set()


def test_every_metric_of_the_conventions_has_their_unit_and_kind() -> None:
    ours = {one.name: one for one in vars(emitted).values() if isinstance(one, emitted.Metric)}
    theirs = {name: metric for name, metric in ours.items() if _is_theirs(name)}
    known = conventional_metrics()

    assert len(theirs) == 5
    assert {name: (one.kind, one.unit) for name, one in theirs.items()} == {
        name: known.get(name) for name in theirs
    }


def test_what_chats_really_emit_is_in_the_conventions(python: Python, model_dir: Path) -> None:
    done = python(CHATS % {"model": TINY, "model_dir": str(model_dir)})

    assert done.returncode == 0, done.stderr
    statuses, names, metrics = json.loads(done.stdout.splitlines()[-2])
    assert statuses == [200, 200, 404]
    assert {"gen_ai.usage.input_tokens", "http.route", "db.query.text", "service.name"} <= {*names}
    assert {"error.type", "network.peer.address", "url.full"} <= {*names}
    assert unknown(names) == set()
    known = conventional_metrics()
    theirs = {name: unit for name, unit in metrics if _is_theirs(name)}
    assert "http.client.request.duration" in theirs
    assert theirs == {name: known.get(name, ("", "unknown"))[1] for name in theirs}


def test_the_page_has_every_name_that_is_really_emitted_and_no_other(
    python: Python, model_dir: Path
) -> None:
    done = python(CHATS % {"model": TINY, "model_dir": str(model_dir)})

    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines()[-2:])
    _, names, metrics = first
    resource, spans, events = second
    described = set(re.findall(r"`([^`\n]+)`", PAGE.read_text()))
    assert {*names, *events, *(name for name, _ in metrics)} - described == set()
    # Requests and statements are named by their methods, in capitals, and `chat {model}` by its first word.
    kinds = {name.split()[0] for name in spans}
    unsaid = kinds - {one.split()[0] for one in described}
    assert {name for name in unsaid if not name.isupper()} == set()
    assert set(listed_below("## Resource")) == set(resource)
    assert set(listed_below("### On HTTP and SQL spans")) - set(names) == set()


# Each SDK once, as a client of a stand-in for its cloud: every name on their spans and on those above them.
CALLS = """
import json
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from mlx_manager.mlx_server.observability.logfire_config import instrument_llm_clients
from mlx_manager.observability.setup import TelemetryOptions, configure
exporter = InMemorySpanExporter()
configure(TelemetryOptions("mlx-test"), span_processors=[SimpleSpanProcessor(exporter)])
instrument_llm_clients()
import anthropic, logfire, openai
from tests.support.provider import MESSAGES, app
from tests.support.running import running

thinking = {"type": "enabled", "budget_tokens": 1024}
with (
    running(app) as server,
    openai.OpenAI(base_url=server.url + "/v1", api_key="k") as gpt,
    anthropic.Anthropic(base_url=server.url, api_key="k") as claude,
    logfire.span("agent"),
):
    gpt.chat.completions.create(model="gpt", messages=MESSAGES)
    gpt.embeddings.create(model="embed", input="x")
    claude.messages.create(model="claude", messages=MESSAGES, max_tokens=2048, service_tier="auto", thinking=thinking)
spans = exporter.get_finished_spans()
print(json.dumps(sorted({(span.name, name) for span in spans for name in span.attributes})))
"""
# What a program that is not ours puts on a span of its own.
OF_PROGRAMS = {"code.filepath", "code.function", "code.lineno", "logfire.msg_template"}


def test_the_page_has_every_name_on_calls_of_clouds(python: Python) -> None:
    done = python(CALLS)

    assert done.returncode == 0, done.stderr
    found = {(span, name) for span, name in json.loads(done.stdout.splitlines()[-1])}
    names = {name for span, name in found} - OF_PROGRAMS
    assert {span for span, _ in found} >= {"agent", "chat gpt", "anthropic.messages.create"}
    assert {"gen_ai.usage.input_tokens", "anthropic.request.service_tier"} <= names
    assert names - set(re.findall(r"`([^`\n]+)`", PAGE.read_text())) == set()
    assert unknown(name for name in names if not name.startswith("anthropic.")) == set()


def listed_below(heading: str) -> list[str]:
    """The names in the first column of the tables of a section of the page."""
    section = re.split(r"^#+ ", PAGE.read_text().split(f"{heading}\n", 1)[1], flags=re.MULTILINE)[0]
    firsts = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for first in firsts for name in re.findall(r"`([^`]+)`", first)]


@pytest.mark.parametrize(
    "name",
    ["gen_ai.system", "gen_ai.usage.prompt_tokens", "http.method", "db.statement", "url.nope"],
)
def test_a_name_that_was_replaced_or_never_was_is_found_out(name: str) -> None:
    assert unknown([name]) == {name}


def test_no_exception_outlives_its_reason() -> None:
    assert NEWER.keys() & conventional_attributes() == set()


def unknown(names: Iterable[str]) -> set[str]:
    """Those of `names` that are neither our own nor the conventions', or not theirs any more."""
    return {*filter(_is_theirs, names)} - conventional_attributes() - NEWER.keys()


def _is_theirs(name: str) -> bool:
    return name not in OWN and not name.startswith(OWN_PREFIXES)


@cache
def conventional_attributes() -> frozenset[str]:
    """All attributes of the conventions, stable or not, without those that were given up."""
    incubating = importlib.import_module("opentelemetry.semconv._incubating.attributes")
    return frozenset(
        name
        for package in (stable_attributes, incubating)
        for module in _modules(package)
        for name, is_current in _constants(module)
        if is_current
    )


@cache
def conventional_metrics() -> dict[str, tuple[str, str]]:
    """Kind and unit of each metric of the conventions that has a way to be made."""
    reader = InMemoryMetricReader()
    incubating = importlib.import_module("opentelemetry.semconv._incubating.metrics")
    meter = MeterProvider([reader]).get_meter("conventions")
    made = {}
    for module in _modules(incubating):
        for name, make in vars(module).items():
            if name.startswith("create_") and len(inspect.signature(make).parameters) == 1:
                instrument = make(meter)
                made[instrument.name] = (
                    type(instrument).__name__.lower().strip("_"),
                    instrument.unit,
                )
    return made


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


def _constants(module: ModuleType) -> Iterator[tuple[str, bool]]:
    """Each name of a module, and whether it is still one: that stands only in the text below it."""
    lines = ast.parse(inspect.getsource(module)).body
    for line, below in zip(lines, [*lines[1:], None], strict=True):
        match line, below:
            case ast.AnnAssign(value=ast.Constant(str(name))), ast.Expr(ast.Constant(str(text))):
                yield name, not GIVEN_UP.match(text.strip())
