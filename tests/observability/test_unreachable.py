"""A server whose telemetry can't leave serves and stops as if nothing were."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.observability.conftest import TOKEN
from tests.support.process import started

# 3 s on a free machine: two for telemetry, one for the engine.
STOP_S = 25.0


@pytest.mark.parametrize("sink", ["silent_port", "refused_port"])
def test_a_server_whose_telemetry_cannot_leave_answers_and_stops_in_time(
    tmp_path: Path, request: pytest.FixtureRequest, sink: str
) -> None:
    address = f"http://127.0.0.1:{request.getfixturevalue(sink)}"
    with started(tmp_path, "server", LOGFIRE_TOKEN=TOKEN, LOGFIRE_BASE_URL=address) as server:
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

        asked_to_stop = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
        assert time.monotonic() - asked_to_stop < STOP_S
    assert "Traceback" not in server.text
