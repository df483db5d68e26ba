"""A request logs as much for a long answer as for a short one."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.support.process import Started, started
from tests.support.running import wait_until

FEW, MANY = 4, 400


def test_no_line_is_logged_for_a_token(tmp_path: Path) -> None:
    with started(tmp_path, "server", MLX_SERVER_LOG_LEVEL="debug") as server:
        lines_of_an_answer(server, FEW)  # loads the model
        few, many = lines_of_an_answer(server, FEW), lines_of_an_answer(server, MANY)

    assert few > 0
    assert many - few < MANY / 100


def lines_of_an_answer(server: Started, tokens: int) -> int:
    """Stream an answer of so many tokens and return how many lines that left."""
    before = len(server.output)
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        json={
            "model": "mlx-manager/starter",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        headers={"X-Request-ID": f"request-{before}"},
        timeout=60,
    )
    # Not by its pieces: those of a slow reader are merged, and this machine may be busy with other tests.
    assert f'"completion_tokens":{tokens}' in answer.text
    wait_until(lambda: any(f"request-{before}" in line for line in server.output), 30)
    return len(server.output) - before
