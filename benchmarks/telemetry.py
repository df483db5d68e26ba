"""What telemetry costs: the same server twice, once with OpenTelemetry's own switch set to off."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import Child
from benchmarks.contenders import ServerContender
from benchmarks.models import make_model
from benchmarks.prompts import PromptMaker
from benchmarks.rounds import Say, Series, measure
from benchmarks.servers import mlx_manager_server
from benchmarks.work import Load, load_for

ON = "telemetry on"
OFF = "telemetry off"
# Spans are begun and never recorded; nothing else about the server changes.
OFF_ENVIRONMENT = {"OTEL_SDK_DISABLED": "true"}
CLIENTS = 16


@dataclass(frozen=True, slots=True)
class TelemetryCost:
    """The two series, streamed, on the tiny model: a request is short there and telemetry's share large."""

    on: Series
    off: Series


def measure_telemetry(
    rounds: int, folder: Path, say: Say, *, clients: int = CLIENTS, is_quick: bool = False
) -> TelemetryCost:
    """Measure both servers in turns; `folder` takes the model and the servers' output."""
    path = make_model(folder / "models", "tiny")
    prompts = PromptMaker(path)
    say("starting two servers, with and without telemetry")
    with ExitStack() as stack:
        child = stack.enter_context(Child("benchmarks.client"))
        on = stack.enter_context(mlx_manager_server(path, folder / "on"))
        off = stack.enter_context(mlx_manager_server(path, folder / "off", OFF_ENVIRONMENT))
        contenders = [
            ServerContender(ON, on, child, prompts, stream=True),
            ServerContender(OFF, off, child, prompts, stream=True),
        ]
        series = measure(contenders, _load(clients, is_quick=is_quick), rounds, say)
    return TelemetryCost(series[ON], series[OFF])


def _load(clients: int, *, is_quick: bool) -> Load:
    return load_for("tiny", clients, is_quick=is_quick)
