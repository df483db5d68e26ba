"""What telemetry costs: the same server with more and more of it, from OpenTelemetry's own switch set to off."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import Child
from benchmarks.contenders import ServerContender
from benchmarks.models import make_model
from benchmarks.prompts import PromptMaker
from benchmarks.receiver import Receiver, otlp_receiver
from benchmarks.rounds import Say, Series, measure
from benchmarks.servers import mlx_manager_server
from benchmarks.work import ModelName, load_for

OFF = "off"
SPANS = "spans, no store"
STORE = "store"
STORE_AND_OTLP = "store and OTLP"
# Each of them against the one that has nothing, and the store once more against what it alone adds.
COMPARED = (
    (OFF, OFF),
    (SPANS, OFF),
    (STORE, OFF),
    (STORE, SPANS),
    (STORE_AND_OTLP, OFF),
)
CLIENTS = 16


class NothingReceived(RuntimeError):
    """The server that exports has sent no spans: its figures would be those of the store alone."""


@dataclass(frozen=True, slots=True)
class TelemetryCost:
    """A series of each server, streamed, on one model. On the tiny one telemetry's share is largest."""

    model: ModelName
    series: dict[str, Series]

    @property
    def failures(self) -> list[str]:
        """Every answer of any server that was not right."""
        return [
            f"telemetry, {self.model}, {one.name}: {text}"
            for one in self.series.values()
            for text in one.failures
        ]


def measure_telemetry(
    model: ModelName,
    rounds: int,
    folder: Path,
    say: Say,
    *,
    clients: int = CLIENTS,
    is_quick: bool = False,
) -> TelemetryCost:
    """Measure the servers in turns; `folder` takes the model and what they write. Raises NothingReceived."""
    path = make_model(folder / "models", model)
    prompts = PromptMaker(path)
    say(f"starting four servers with different telemetry on {model}, and a receiver")
    with ExitStack() as stack:
        child = stack.enter_context(Child("benchmarks.client"))
        receiver = stack.enter_context(otlp_receiver())
        contenders = []
        for name, environment in _environments(receiver).items():
            server = mlx_manager_server(path, folder / name, environment)
            contenders.append(
                ServerContender(name, stack.enter_context(server), child, prompts, stream=True)
            )
        load = load_for(model, clients, is_quick=is_quick)
        series = measure(contenders, load, rounds, say)
        if not receiver.exports_of_spans():
            raise NothingReceived(f"{STORE_AND_OTLP} has sent no spans to {receiver.url}.")
    return TelemetryCost(model, series)


def _environments(receiver: Receiver) -> dict[str, dict[str, str]]:
    """What each server is told beyond its defaults."""
    return {
        # Spans are begun and never recorded; nothing else about the server changes.
        OFF: {"OTEL_SDK_DISABLED": "true"},
        # Recorded and redacted, for nobody.
        SPANS: {"MLX_SERVER_TRACES": "false"},
        STORE: {},
        STORE_AND_OTLP: {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url},
    }
