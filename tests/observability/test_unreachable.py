"""A server whose telemetry can't leave serves and stops as if nothing were."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.observability.conftest import TOKEN
from tests.support.collector import Behaviour, collecting
from tests.support.process import Started, started
from tests.support.running import wait_until

# 1 to 1.5 s: the end of the engine, and of the second that telemetry has what is left by then.
STOP_S = 10.0


@pytest.mark.parametrize("sink", ["silent_port", "refused_port"])
def test_a_server_whose_telemetry_cannot_leave_answers_and_stops_in_time(
    tmp_path: Path, request: pytest.FixtureRequest, sink: str
) -> None:
    address = f"http://127.0.0.1:{request.getfixturevalue(sink)}"
    with started(tmp_path, "server", LOGFIRE_TOKEN=TOKEN, LOGFIRE_BASE_URL=address) as server:
        ask(server)
        stop(server)
    assert "Traceback" not in server.text


@pytest.mark.parametrize("behaviour", ["is silent", "is slow", "fails", "is busy"])
def test_a_server_with_a_sick_collector_answers_stops_in_time_and_tells_the_other_sink_all(
    tmp_path: Path, behaviour: Behaviour
) -> None:
    with collecting(behaviour) as sick, collecting() as well:
        with started(
            tmp_path,
            "serve",
            LOGFIRE_TOKEN=TOKEN,
            LOGFIRE_BASE_URL=sick.url,
            OTEL_EXPORTER_OTLP_ENDPOINT=well.url,
        ) as server:
            for _ in range(3):
                ask(server)
            stop(server)
        assert well.span_names.count("chat mlx-manager/starter") == 3
        assert well.span_names.count("POST /v1/chat/completions") == 3
        assert well.span_names.count("decode") == 3
        assert "gen_ai.server.request.duration" in well.metric_names
    assert "Traceback" not in server.text


def test_requests_are_answered_while_a_collector_keeps_its_answer_to_itself(tmp_path: Path) -> None:
    patient = str(10 * STOP_S)
    with (
        collecting("is silent") as silent,
        started(
            tmp_path,
            "serve",
            OTEL_EXPORTER_OTLP_ENDPOINT=silent.url,
            OTEL_EXPORTER_OTLP_TIMEOUT=patient,
            OTEL_METRICS_EXPORTER="none",
        ) as server,
    ):
        ask(server)
        wait_until(lambda: silent.asked == 1)
        for _ in range(20):
            ask(server)
        # The export that was under way before them still is, and none was begun beside it.
        assert (silent.asked, silent.answered) == (1, 0)
        stop(server)
    assert "Traceback" not in server.text


def ask(server: Started) -> None:
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        json={
            "model": "mlx-manager/starter",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 4,
        },
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] > 0


def stop(server: Started) -> None:
    asked_to_stop = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == -signal.SIGTERM
    assert time.monotonic() - asked_to_stop < STOP_S
