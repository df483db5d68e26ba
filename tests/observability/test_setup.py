"""Set up once, silently, without a network, and over within its time."""

from __future__ import annotations

import pytest

from mlx_manager.observability.setup import SEND_S
from tests.observability.conftest import TOKEN, Python

# Prints where the process connects to, so that silence means that it didn't.
WATCH_NETWORK = """
import sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("NETWORK", event, args[-1], file=sys.stderr)
sys.addaudithook(watch)
"""

WORK = """
import logfire
with logfire.span("work"):
    logfire.info("inside")
"""


@pytest.mark.parametrize(
    ("first", "second", "service"),
    [
        ("mlx_manager.mlx_server.main", "mlx_manager.main", "mlx-server"),
        ("mlx_manager.main", "mlx_manager.mlx_server.main", "mlx-manager"),
    ],
)
def test_both_applications_import_in_one_process_without_a_word(
    python: Python, first: str, second: str, service: str
) -> None:
    """The one that is imported first names the service."""
    done = python(f"""
from {first} import app
from {second} import app as other
from opentelemetry import trace
print('OK', trace.get_tracer_provider().resource.attributes["service.name"])
""")

    assert (done.stdout, done.stderr) == (f"OK {service}\n", "")


def test_the_first_configuration_wins_and_the_second_says_nothing(python: Python) -> None:
    done = python("""
from mlx_manager.mlx_server.observability.logfire_config import configure_logfire
from mlx_manager.observability import logfire_config as manager
configure_logfire(environment="production")
manager.configure_logfire(environment="development", console=True)
from opentelemetry import trace
resource = trace.get_tracer_provider().resource.attributes
print(resource["service.name"], resource["deployment.environment.name"])
print(resource["service.version"], len(resource["service.instance.id"]) >= 32)
import logfire
logfire.info("not on the console")
""")

    assert done.stdout == "mlx-server production\n0.1.0 True\n"
    assert done.stderr == ""


def test_without_a_token_nothing_is_sent_and_nothing_is_waited_for(python: Python) -> None:
    done = python(f"""{WATCH_NETWORK}
import time
from mlx_manager.observability.setup import TelemetryOptions, configure, flush, shutdown
configure(TelemetryOptions("test"))
{WORK}
start = time.perf_counter()
print(flush(5), shutdown(5), time.perf_counter() - start < 1)
""")

    assert (done.stdout, done.stderr) == ("True True True\n", "")


def test_a_token_turns_sending_on(python: Python, silent_port: int) -> None:
    done = python(
        f"""{WATCH_NETWORK}
from mlx_manager.observability.setup import TelemetryOptions, configure, flush
configure(TelemetryOptions("test"))
{WORK}
flush(0.5)
""",
        LOGFIRE_TOKEN=TOKEN,
        LOGFIRE_BASE_URL=f"http://127.0.0.1:{silent_port}",
    )

    assert f"NETWORK socket.connect ('127.0.0.1', {silent_port})" in done.stderr


@pytest.mark.parametrize("closing", ["flush()", "flush(0.5)", "shutdown(0.5)", "None"])
def test_a_server_that_never_answers_holds_the_end_up_for_a_second_once(
    python: Python, silent_port: int, closing: str
) -> None:
    done = python(
        f"""
import atexit, time
# The first that is registered is the last that is called.
atexit.register(lambda: print(time.monotonic() - closing_s))
from mlx_manager.observability.setup import TelemetryOptions, configure, flush, shutdown
configure(TelemetryOptions("test"))
{WORK}
closing_s = time.monotonic()
print({closing})
""",
        LOGFIRE_TOKEN=TOKEN,
        LOGFIRE_BASE_URL=f"http://127.0.0.1:{silent_port}",
    )

    assert done.returncode == 0
    closed, took_s = done.stdout.split()
    assert closed == ("None" if closing == "None" else "False")
    # The rest is for a busy machine. Without limits it is 11 s and more.
    assert float(took_s) < SEND_S + 5


def test_the_console_is_quiet_until_asked(python: Python) -> None:
    code = f"""
from mlx_manager.observability.logfire_config import configure_logfire
configure_logfire(console=%s)
{WORK}
"""
    quiet, readable = python(code % "False"), python(code % "True")

    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert [line.split(" ", 1)[1] for line in readable.stdout.splitlines()] == ["work", "  inside"]


def test_instrumenting_needs_no_order_of_imports(python: Python) -> None:
    """httpx, SQLAlchemy, FastAPI and both SDKs are imported and used before; what comes later is traced no less."""
    done = python("""
import asyncio, httpx, fastapi, openai, anthropic
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
client, app, engine = httpx.Client(), fastapi.FastAPI(), create_engine("sqlite://")
nowhere = {"api_key": "none", "base_url": "http://127.0.0.1:1", "max_retries": 0}
one, other = openai.OpenAI(**nowhere), anthropic.Anthropic(**nowhere)
asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
from mlx_manager.mlx_server.observability import logfire_config
from mlx_manager.observability.setup import span_sink
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
logfire_config.configure_logfire()
for _ in range(2):
    logfire_config.instrument_httpx()
    logfire_config.instrument_fastapi(app)
    logfire_config.instrument_sqlalchemy(engine)
    logfire_config.instrument_llm_clients()
exporter = InMemorySpanExporter()
with span_sink(SimpleSpanProcessor(exporter)):
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    try:
        client.get("http://127.0.0.1:1/")
    except httpx.ConnectError:
        pass
    async def ask():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://app"
        ) as inside:
            await inside.get("/openapi.json")
    asyncio.run(ask())
    for call, error in (
        (one.chat.completions.create, openai.APIConnectionError),
        (other.messages.create, anthropic.APIConnectionError),
    ):
        try:
            call(**asked)
        except error:
            pass
print([(span.kind.name, span.name) for span in exporter.get_finished_spans()])
""")

    assert done.stderr == ""
    assert done.stdout.strip() == str(
        [
            ("CLIENT", "SELECT"),
            ("CLIENT", "GET"),
            ("SERVER", "GET /openapi.json"),
            ("CLIENT", "POST"),
            ("CLIENT", "chat m"),
            ("CLIENT", "POST"),
            ("CLIENT", "anthropic.messages.create"),
        ]
    )
