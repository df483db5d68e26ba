"""The command line: it starts, it says where it is, and it says what is wrong in a line."""

from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from openai import OpenAI

from mlx_manager import __version__
from mlx_manager.cli import ENDED_BY_FORCE
from tests.conftest import ENDLESS_TOKENS
from tests.support.process import run, started
from tests.support.running import wait_until


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout.strip() == f"mlx-manager {__version__}"


@pytest.mark.parametrize("command", ["serve", "server"])
def test_both_commands_start_a_server_that_answers_and_stop_on_sigterm(
    tmp_path: Path, command: str
) -> None:
    with started(tmp_path, command) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with client:
            answer = client.chat.completions.create(
                model="mlx-manager/starter", messages=[{"role": "user", "content": "Hello"}]
            )
        assert answer.choices[0].finish_reason == "stop"
        assert httpx.get(f"{server.url}/health").status_code == 200
        engines = psutil.Process(server.process.pid).children()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
    assert engines
    assert not any(engine.is_running() for engine in engines)
    assert "Traceback" not in server.text


def test_a_connection_outlives_the_time_that_clients_keep_an_idle_one(tmp_path: Path) -> None:
    # httpx, and so both SDKs, keeps one for 5 s. A server that closes it first may do so while a request is on its way.
    with started(tmp_path, "server") as server:
        address = server.url.removeprefix("http://")
        with closing(HTTPConnection(address, timeout=60)) as connection:
            first = listed(connection)
            assert connection.sock is not None
            time.sleep(6)
            second = listed(connection)
    assert first == second == 200


def listed(connection: HTTPConnection) -> int:
    connection.request("GET", "/v1/models")
    response = connection.getresponse()
    response.read()
    return response.status


def test_sigterm_gives_requests_their_time_and_then_a_clear_error(
    tmp_path: Path, model_dir: Path
) -> None:
    arguments = ["server", "--model-dir", str(model_dir), "--model", "test/tiny"]
    body = {"model": "test/tiny", "prompt": "x", "max_tokens": ENDLESS_TOKENS, "temperature": 0}
    with started(tmp_path, *arguments, MLX_SERVER_SHUTDOWN_TIMEOUT_S="0.5") as server:
        engine = psutil.Process(server.process.pid).children()[0]
        with ThreadPoolExecutor() as pool:
            url = f"{server.url}/v1/completions"
            whole = pool.submit(httpx.post, url, json=body, timeout=60)
            streamed = pool.submit(httpx.post, url, json=body | {"stream": True}, timeout=60)
            wait_until(lambda: active_requests(server.url) == 2)
            server.process.send_signal(signal.SIGTERM)
        assert server.wait(30) == -signal.SIGTERM
    assert not engine.is_running()
    assert "Traceback" not in server.text
    error = whole.result().json()["error"]
    assert (whole.result().status_code, error["code"]) == (503, "shutting_down")
    assert error["request_id"] == whole.result().headers["X-Request-ID"]
    last_event = streamed.result().text.split("\n\n")[-2]
    assert json.loads(last_event.removeprefix("data: "))["error"]["code"] == "shutting_down"
    with sqlite3.connect(tmp_path / "mlx.db") as database:
        rows = database.execute("SELECT outcome, error_code FROM audit_log").fetchall()
    assert rows == [("failed", "shutting_down")] * 2


def test_sigterm_lets_answers_end_and_waits_no_longer_than_for_them(
    tmp_path: Path, model_dir: Path
) -> None:
    grace_s, tokens = 30, 600
    arguments = ["server", "--model-dir", str(model_dir), "--model", "test/tiny"]
    body = {"model": "test/tiny", "prompt": "x", "max_tokens": tokens, "temperature": 0}
    with started(tmp_path, *arguments, MLX_SERVER_SHUTDOWN_TIMEOUT_S=str(grace_s)) as server:
        engine = psutil.Process(server.process.pid).children()[0]
        # Neither answer is over before the other has begun.
        engine.suspend()
        with ThreadPoolExecutor() as pool:
            url = f"{server.url}/v1/completions"
            whole = pool.submit(httpx.post, url, json=body, timeout=60)
            streamed = pool.submit(httpx.post, url, json=body | {"stream": True}, timeout=60)
            wait_until(lambda: active_requests(server.url) == 2)
            server.process.send_signal(signal.SIGTERM)
            engine.resume()
            told_s = time.monotonic()
        assert server.wait() == -signal.SIGTERM
        assert time.monotonic() - told_s < grace_s - 10
    assert "Traceback" not in server.text
    assert whole.result().json()["choices"][0]["finish_reason"] == "length"
    *_, last_event, done, _ = streamed.result().text.split("\n\n")
    last = json.loads(last_event.removeprefix("data: "))
    assert (last["choices"][0]["finish_reason"], done) == ("length", "data: [DONE]")
    with sqlite3.connect(tmp_path / "mlx.db") as database:
        rows = database.execute("SELECT outcome, output_tokens FROM audit_log").fetchall()
    assert rows == [("completed", tokens)] * 2


def test_sigterm_tells_requests_too_whose_model_is_still_loading(
    tmp_path: Path, model_dir: Path
) -> None:
    arguments = ["server", "--model-dir", str(model_dir)]
    body = {"model": "test/tiny", "prompt": "x", "max_tokens": 1}
    with started(tmp_path, *arguments, MLX_SERVER_SHUTDOWN_TIMEOUT_S="0.5") as server:
        process = psutil.Process(server.process.pid)
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=60)
            wait_until(lambda: bool(engines_of(process)))
            [engine] = engines_of(process)
            engine.suspend()
            server.process.send_signal(signal.SIGTERM)
        assert server.wait(30) == -signal.SIGTERM
    assert not engine.is_running()
    assert "Traceback" not in server.text
    answer = asked.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")


@pytest.mark.parametrize("is_locked", [False, True])
def test_sigterm_ends_a_server_whose_engine_hangs_and_whose_files_are_locked(
    tmp_path: Path, model_dir: Path, *, is_locked: bool
) -> None:
    arguments = ["server", "--model-dir", str(model_dir), "--model", "test/tiny"]
    body = {"model": "test/tiny", "prompt": "x", "max_tokens": ENDLESS_TOKENS, "temperature": 0}
    with started(tmp_path, *arguments, MLX_SERVER_SHUTDOWN_TIMEOUT_S="0.5") as server:
        [engine] = engines_of(psutil.Process(server.process.pid))
        url = f"{server.url}/v1/completions"
        with (
            ExitStack() as locks,
            httpx.stream("POST", url, json=body | {"stream": True}, timeout=60) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            engine.suspend()
            for file in ("mlx.db", "traces.db") if is_locked else ():
                locks.enter_context(locked(tmp_path / file))
            server.process.send_signal(signal.SIGTERM)
            *_, last_event = (line for line in lines if line)
            status = server.wait()
        wait_until(lambda: not engine.is_running())
    assert json.loads(last_event.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert status == (ENDED_BY_FORCE if is_locked else -signal.SIGTERM)
    assert ("ended by force" in server.text) == is_locked


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a database's write lock, as another process would."""
    with closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def engines_of(process: psutil.Process) -> list[psutil.Process]:
    """Its children that are engines already, and no more what they were forked from."""
    return [one for one in process.children() if "mlx_manager.mlx_server.engine" in one.cmdline()]


def active_requests(url: str) -> int:
    return sum(model["active_requests"] for model in httpx.get(f"{url}/health").json()["models"])


@pytest.mark.parametrize("stands_still", [False, True])
def test_an_engine_does_not_outlive_a_killed_server(
    tmp_path: Path, model_dir: Path, *, stands_still: bool
) -> None:
    if stands_still and sys.platform != "linux":
        pytest.skip("nobody can end a process that stands still here but its parent")
    arguments = ["server", "--model-dir", str(model_dir), "--model", "test/tiny"]
    with started(tmp_path, *arguments) as server:
        engine = psutil.Process(server.process.pid).children()[0]
        if stands_still:
            engine.suspend()
        server.process.kill()
        server.wait()
        wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [("0.0.0.0", "", True), ("0.0.0.0", "own=secret-of-mine", False), ("127.0.0.1", "", False)],
)
def test_a_server_that_others_can_use_without_a_key_says_so(
    tmp_path: Path, host: str, keys: str, *, warned: bool
) -> None:
    changes = {"MLX_SERVER_API_KEYS": keys} if keys else {}
    with started(tmp_path, "server", "--host", host, **changes) as server:
        wait_until(lambda: "stop: Ctrl-C" in server.text, 60)
        httpx.get(f"http://127.0.0.1:{urlsplit(server.url).port}/health")
    assert ("Whoever reaches this machine" in server.text) is warned
    assert not warned or "MLX_SERVER_API_KEYS" in server.text


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        outcome = run(tmp_path, "serve", "--port", port)
    assert outcome.returncode == 2
    assert f"Port {port} on 127.0.0.1 is taken" in outcome.stderr
    assert "--port" in outcome.stderr


def test_a_model_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path) -> None:
    outcome = run(tmp_path, "serve", "--model", "no/such")
    assert outcome.returncode == 2
    assert "no/such" in outcome.stderr
    assert "mlx-manager/starter" in outcome.stderr


def test_a_model_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    outcome = run(tmp_path, "server", "--model-dir", str(tmp_path / "absent"))
    assert outcome.returncode == 2
    assert str(tmp_path / "absent") in outcome.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server\n", "not valid TOML"),
        ("[server]\nmax_bach = 3\n", "'max_bach'"),
        ("[sever]\n", "'sever'"),
        ("[server]\nmax_batch = 'many'\n", "MLX_SERVER_MAX_BATCH"),
        ("[server.models.'a/b']\nkv_bits = 5\n", "MLX_SERVER_MODELS.a/b.kv_bits is 5"),
        (None, "can't be read"),
    ],
)
def test_a_configuration_that_can_not_be_read_says_why(
    tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "config.toml"
    if text is not None:
        file.write_text(text)
    outcome = run(tmp_path, "serve", "--config", str(file))
    assert outcome.returncode == 2
    assert said in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    outcome = run(tmp_path, "serve", MLX_MANAGER_PORT="many")
    assert outcome.returncode == 2
    assert "MLX_MANAGER_PORT is 'many'" in outcome.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("API_KEYS", "laptop=mistake"), ("OTLP_KEY", ""), ("API_KEYS", "mistake")]
)
def test_a_key_that_can_be_none_is_not_shown(tmp_path: Path, name: str, value: str) -> None:
    outcome = run(tmp_path, "serve", **{f"MLX_SERVER_{name}": value})
    assert outcome.returncode == 2
    assert f"MLX_SERVER_{name} can't be used" in outcome.stderr
    assert "mistake" not in outcome.stderr


def test_a_database_that_can_not_be_opened_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mlx.db"
    file.write_text("this is no database, and it is long enough to be taken for one" * 100)
    outcome = run(tmp_path, "server")
    assert outcome.returncode == 2
    assert str(file) in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_settings_come_from_the_file_and_options_win_over_it(
    tmp_path: Path, model_dir: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        f'[server]\nport = 1\nmodel_dirs = ["{model_dir}"]\nlog_level = "warning"\n'
        'preload = ["test/tiny", "test/short"]\n'
    )
    with file.open("a") as more:
        more.write('[server.api_keys]\nlaptop = "a-long-secret"\n')
        more.write('[server.models."test/tiny"]\naliases = ["small", "tiny"]\n')
    headers = {"Authorization": "Bearer a-long-secret"}
    with started(tmp_path, "server", "--config", str(file)) as server:
        answer = httpx.get(f"{server.url}/v1/models", headers=headers)
        ids = [model["id"] for model in answer.json()["data"]]
        loaded = [model["id"] for model in httpx.get(f"{server.url}/health").json()["models"]]
    assert sorted(loaded) == ["test/short", "test/tiny"]
    assert {"test/tiny", "small", "tiny"} <= set(ids)
    assert "INFO" not in server.text


def test_every_log_line_of_a_server_can_be_json_and_leads_to_its_trace(
    tmp_path: Path, model_dir: Path
) -> None:
    arguments = ["server", "--model-dir", str(model_dir), "--model", "test/tiny"]
    body = {"model": "test/tiny", "prompt": "x", "max_tokens": 1}
    with started(tmp_path, *arguments, MLX_SERVER_LOG_FORMAT="json") as server:
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        wait_until(lambda: "request answered" in server.text)
    # What the command line says to whoever has started it is no log.
    lines = [line for line in server.text.splitlines() if line.strip()]
    logged = [json.loads(line) for line in lines if not line.startswith(("MLX ", "OpenAI-"))]
    assert {"uvicorn.error", "mlx_manager.access"} <= {line["logger"] for line in logged}
    [answered] = [line for line in logged if line.get("event") == "request answered"]
    assert answered["trace_id"] == answer.headers["X-Trace-ID"]
    assert answered["request_id"] == answer.headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{16}", answered["span_id"])


def test_keys_in_a_query_reach_no_log_line(tmp_path: Path) -> None:
    with started(tmp_path, "serve") as server:
        httpx.get(f"{server.url}/v1/models?api_key=marked-secret")
        httpx.get(f"{server.url}/nothing?token=marked-secret")
        wait_until(lambda: "/nothing" in server.text)
    assert "marked-secret" not in server.text
