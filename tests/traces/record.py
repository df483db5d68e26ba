"""Record the traces that explanations are tested on: a real server, one staged request each, exported as OTLP JSON.

`python -m tests.traces.record` makes the files in `tests/traces/recorded/` anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import logfire
import openai
from opentelemetry import trace

from mlx_manager.app import create_app
from mlx_manager.mlx_server.observability.logfire_config import instrument_llm_clients
from mlx_manager.observability.setup import TelemetryOptions, configure
from mlx_manager.observability.span_record import SpanRecord
from tests.support.encoders import make_encoder
from tests.support.provider import app as provider
from tests.support.running import RunningServer, running, settings_for, wait_until
from tools.random_model import make_random_model

RECORDED = Path(__file__).parent / "recorded"
STARTER, ENCODER, TINY = "mlx-manager/starter", "test/encoder", "test/tiny"
CHAT = "/v1/chat/completions"
RULES = "You are careful and answer in few words. "
ITEM = {"type": "object", "properties": {"name": {"type": "string"}, "count": {"type": "integer"}}}
LIST = {"type": "array", "minItems": 3, "items": {**ITEM, "required": ["name", "count"]}}
SCHEMA = {"type": "object", "properties": {"items": LIST}, "required": ["items"]}
READ_SLOWLY_TOKENS = 2000
# As long as tokens that carry a person's groups are.
LONG_KEY = "somebodys-long-key-" * 2500
LONG_CHECK_NS, MOST_ATTEMPTS = 2_000_000, 200
# Who recorded it is nobody's business.
OF_THE_MACHINE = ("host.", "process.", "os.")

Scenario = Callable[["Stage"], str]
Call = Callable[[str], None]
Ask = Callable[[str], str]


class Stage:
    """A server on which requests are staged; each scenario returns the id of the trace that it is about."""

    def __init__(self, folder: Path, server: RunningServer, client: httpx.Client) -> None:
        self.folder = folder
        self.server = server
        self.client = client

    def ask(self, path: str = CHAT, **changes: Any) -> str:
        """Send a request, read its answer, and return its trace's id."""
        # Without a span of its own: whoever records may have instrumented httpx.
        with logfire.suppress_instrumentation():
            return self.client.post(path, json=body(**changes)).headers["X-Trace-ID"]

    @contextmanager
    def answering(self, tokens: int) -> Iterator[None]:
        """Have an answer streamed that goes on until the block ends, unless it is complete before."""
        chat = body(tokens, stream=True)
        with (
            logfire.suppress_instrumentation(),
            self.client.stream("POST", CHAT, json=chat) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            yield

    def spans(self, trace_id: str) -> tuple[SpanRecord, ...]:
        """Return the spans of the trace, once that of the request is among them."""
        store = self.server.state.traces
        assert store is not None
        found = list[SpanRecord]()

        def is_whole() -> bool:
            kept = store.get_trace(trace_id)
            found[:] = kept.spans if kept else ()
            return any(span.kind == "server" for span in found)

        wait_until(is_whole, 60)
        return tuple(found)

    def export(self, trace_id: str) -> bytes:
        """Return the trace as the product exports it, once it is whole."""
        store = self.server.state.traces
        assert store is not None
        self.spans(trace_id)
        # The phases of an answer are written down a moment after its last byte.
        asyncio.run(self.server.close_books())
        assert store.flush(30)
        return self.client.get(f"/api/traces/{trace_id}/otlp").content


def body(tokens: int = 20, system: str = "", **changes: Any) -> dict[str, Any]:
    """A chat that has just so many tokens; what is None is left out."""
    messages = [{"role": "user", "content": "What is MLX Manager?"}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    chat = {"messages": messages, "ignore_eos": True, "temperature": 0, "max_tokens": tokens}
    whole = {"model": STARTER} | chat | changes
    return {name: value for name, value in whole.items() if value is not None}


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """A manager with two places in a batch, three models, and prompts that are read in one piece."""
    make_encoder(folder / "models" / ENCODER)
    make_random_model(folder / "models" / TINY)
    settings = settings_for(
        folder, folder / "models", max_batch=2, prefill_chunk_tokens=4096, token_gap_ms=10_000
    )
    configure(TelemetryOptions("mlx-manager"))
    instrument_llm_clients()
    with (
        running(create_app(settings)) as server,
        httpx.Client(base_url=server.url, timeout=300) as client,
    ):
        yield Stage(folder, server, client)


def model_load(stage: Stage) -> str:
    """The first request for a model."""
    return stage.ask()


def queue(stage: Stage) -> str:
    """Both places in the batch are taken."""
    with ThreadPoolExecutor() as threads:
        with stage.answering(2000), stage.answering(2000):
            waiting = threads.submit(stage.ask)
            wait_until(lambda: stage.server.active(STARTER) == 3)
            threading.Event().wait(0.5)
        return waiting.result()


def prefix_miss(stage: Stage) -> str:
    """A prompt that leaves a stored one in the middle of its instructions."""
    stage.ask(system=RULES * 20 + "Today is Monday. " + RULES * 20)
    return stage.ask(system=RULES * 20 + "Tomorrow is Tuesday. " + RULES * 20)


def prefix_hit(stage: Stage) -> str:
    """The same prompt again."""
    stage.ask()
    return stage.ask()


def prefill_of_others(stage: Stage) -> str:
    """A long prompt of another request is read while this one is answered."""
    with ThreadPoolExecutor() as threads:
        answered = threads.submit(stage.ask, max_tokens=150)
        wait_until(lambda: stage.server.active(STARTER) == 1)
        threading.Event().wait(0.3)
        stage.ask(system="Something else altogether, and long. " * 120, max_tokens=1)
        return answered.result()


def slow_reader(stage: Stage) -> str:
    """A client that doesn't read until the answer has been ready for a while; it is too large for what lies between."""
    chat = body(READ_SLOWLY_TOKENS, model=TINY, stream=True, logprobs=True, top_logprobs=20)
    text = json.dumps(chat)
    address = urlsplit(stage.server.url)
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect((address.hostname, address.port))
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        )
        plain.sendall(
            f"{head}Content-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode()
        )
        answer = plain.recv(2000).decode()
        wait_until(lambda: stage.server.active(TINY) == 0, 300)
        threading.Event().wait(2)
        while plain.recv(2**16):
            pass
    lines = answer.lower().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("x-trace-id:"))


def cancelled(stage: Stage) -> str:
    """A client that leaves."""
    with logfire.suppress_instrumentation():
        with stage.client.stream("POST", CHAT, json=body(3000, stream=True)) as answer:
            next(answer.iter_lines())
        return str(answer.headers["X-Trace-ID"])


def failed(stage: Stage) -> str:
    """A model that there isn't."""
    return stage.ask(model="nobody/none")


def checked_key(stage: Stage) -> str:
    """Checking a long key lets other threads have their turn, and one of them computes.

    Python gives way while it hashes so much, and has to wait until the other thread gives way in its turn.
    """
    with keyed(stage) as ask, busy():
        for _ in range(MOST_ATTEMPTS):
            trace_id = ask(LONG_KEY)
            (check,) = (one for one in stage.spans(trace_id) if one.name == "authenticate")
            if check.duration_ns > LONG_CHECK_NS:
                return trace_id
    raise AssertionError("the other thread never had its turn")


def refused(stage: Stage) -> str:
    """A key that is none of the server's."""
    with keyed(stage) as ask:
        return ask("no-key-of-this-server")


@contextmanager
def keyed(stage: Stage) -> Iterator[Ask]:
    """Give what asks a server that takes requests with a key only, with one; a process's servers share its spans."""
    folder = Path(tempfile.mkdtemp(dir=stage.folder))
    settings = settings_for(folder, stage.folder / "models", api_keys={"somebody": LONG_KEY})
    with (
        running(create_app(settings)) as server,
        httpx.Client(base_url=server.url, timeout=300) as client,
        logfire.suppress_instrumentation(),
    ):

        def ask(key: str) -> str:
            answer = client.post(CHAT, json=body(1, model=TINY), headers={"x-api-key": key})
            return answer.headers["X-Trace-ID"]

        ask(LONG_KEY)
        yield ask


@contextmanager
def busy() -> Iterator[None]:
    """Have another thread compute until the block ends."""
    is_over = threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def overtaken(stage: Stage) -> str:
    """Both places are taken, and somebody who comes later is more important."""
    with ThreadPoolExecutor() as threads:
        with stage.answering(2000), stage.answering(2000):
            waiting = threads.submit(stage.ask, priority="low")
            wait_until(lambda: stage.server.active(STARTER) == 3)
            threading.Event().wait(0.2)
            overtaking = threads.submit(stage.ask, priority="high")
            wait_until(lambda: stage.server.active(STARTER) == 4)
            threading.Event().wait(0.2)
        overtaking.result()
        return waiting.result()


def shared_prefix(stage: Stage) -> str:
    """Two long prompts that begin alike come together: one is read, and the other waits for what was read."""
    with ThreadPoolExecutor() as threads:
        system = "What both of them begin with, which takes its time. " * 60
        first = threads.submit(stage.ask, system=system)
        wait_until(lambda: stage.server.active(STARTER) == 1)
        threading.Event().wait(0.02)
        second = threads.submit(stage.ask, system=f"{system} And more.")
        first.result()
        return second.result()


def thoughts(stage: Stage) -> str:
    """A model that is told to think."""
    question = [{"role": "user", "content": "What is 3 plus 4?"}]
    return stage.ask(
        messages=question, reasoning_effort="high", stream=True, ignore_eos=None, max_tokens=300
    )


def cloud(stage: Stage) -> str:
    """A program that asks us, and then a cloud."""
    with calling(stage) as (ours, theirs):
        ours(STARTER)
        theirs("gpt")
        return trace_of_now()


def fallback(stage: Stage) -> str:
    """A program that asks a cloud when we have failed."""
    with calling(stage) as (ours, theirs):
        with suppress(openai.NotFoundError):
            ours("nobody/none")
        theirs("gpt")
        return trace_of_now()


@contextmanager
def calling(stage: Stage) -> Iterator[tuple[Call, Call]]:
    """Give what calls our server, and what calls a provider of models, from within a program's own span."""
    with (
        running(provider) as elsewhere,
        openai.OpenAI(base_url=f"{stage.server.url}/v1", api_key="k", max_retries=0) as ours,
        openai.OpenAI(base_url=f"{elsewhere.url}/v1", api_key="k", max_retries=0) as theirs,
        logfire.span("agent"),
    ):
        yield partial(call, ours), partial(call, theirs)


def call(client: openai.OpenAI, model: str) -> None:
    """Send a chat by the SDK, which the product traces."""
    client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=5
    )


def trace_of_now() -> str:
    """The id of the trace in which this is called."""
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


def resumed(stage: Stage) -> str:
    """The engine process is killed in the middle of an answer."""
    with ThreadPoolExecutor() as threads:
        answered = threads.submit(stage.ask, max_tokens=200)
        wait_until(lambda: any(one.output_tokens > 9 for one in stage.server.state.running))
        engine = stage.server.resident(STARTER).engine
        assert engine is not None
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        return answered.result()


def grammar(stage: Stage) -> str:
    """An answer that is held to a schema that nobody has used before."""
    form = {"name": "list", "schema": SCHEMA, "strict": True}
    return stage.ask(
        response_format={"type": "json_schema", "json_schema": form}, ignore_eos=None, max_tokens=8
    )


def embeddings(stage: Stage) -> str:
    """Inputs of different lengths."""
    return stage.ask(
        "/v1/embeddings",
        model=ENCODER,
        input=["a word", "many words " * 8],
        messages=None,
        ignore_eos=None,
        temperature=None,
        max_tokens=None,
    )


# In an order in which each finds the server as it needs it.
SCENARIOS: tuple[Scenario, ...] = (
    model_load,
    prefix_hit,
    prefix_miss,
    queue,
    prefill_of_others,
    slow_reader,
    cancelled,
    failed,
    grammar,
    embeddings,
    overtaken,
    shared_prefix,
    thoughts,
    checked_key,
    refused,
    cloud,
    fallback,
    resumed,
)


def record(
    stage: Stage, scenarios: tuple[Scenario, ...] = SCENARIOS
) -> Iterator[tuple[str, bytes]]:
    """Stage each scenario; yield its name and its trace."""
    for scenario in scenarios:
        wait_until(lambda: all(resident.leases == 0 for resident in stage.server.pool.residents))
        yield scenario.__name__, stage.export(scenario(stage))


def main() -> None:
    """Write all files anew."""
    RECORDED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, staged(Path(folder)) as stage:
        for name, exported in record(stage):
            document = json.loads(exported)
            for found in document["resourceSpans"]:
                about = found["resource"]["attributes"]
                about[:] = [one for one in about if not one["key"].startswith(OF_THE_MACHINE)]
            (RECORDED / f"{name}.json").write_text(json.dumps(document) + "\n")
            sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
