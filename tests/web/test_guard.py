"""Who may see the pages and the administration: this machine, by its own name, unless it is said otherwise."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from mlx_manager.app import create_app
from mlx_manager.config import Settings
from mlx_manager.mlx_server.api.callers import host_name, is_loopback
from tests.support.running import settings_for

ELSEWHERE = "192.0.2.7"
Client = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def client_at(tmp_path: Path) -> AsyncIterator[Client]:
    """Makes clients of an application that isn't started: what is refused never reaches it."""
    clients: list[httpx.AsyncClient] = []

    def make(
        address: str = "127.0.0.1", host: str = "localhost:10242", **settings: object
    ) -> httpx.AsyncClient:
        app = create_app(settings_for(tmp_path, tmp_path), Settings.model_validate(settings))
        transport = httpx.ASGITransport(app, client=(address, 4711))
        client = httpx.AsyncClient(transport=transport, base_url=f"http://{host}")
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize("path", ["/", "/traces", "/api/traces", "/api/events", "/api/anything"])
async def test_another_machine_is_refused_and_told_what_to_set(
    client_at: Client, path: str
) -> None:
    answer = await client_at(ELSEWHERE).get(path)

    assert answer.status_code == 403
    problem = answer.json()
    assert problem["code"] == "local_only"
    assert "MLX_MANAGER_OPEN_UI=true" in problem["detail"]
    assert problem["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("path", ["/traces", "/settings", "/api/traces", "/api/requests"])
async def test_who_is_refused_leaves_a_line_in_the_log_and_who_looks_leaves_none(
    client_at: Client, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    with caplog.at_level(logging.INFO, "mlx_manager.access"):
        refused = await client_at(ELSEWHERE).get(path)
        await client_at().get("/settings")

    [line] = [one for one in caplog.records if one.name == "mlx_manager.access"]
    assert line.getMessage().startswith(f"GET {path} 403 ")
    assert vars(line)["request_id"] == refused.headers["X-Request-ID"]


async def test_a_person_elsewhere_is_refused_with_a_page(client_at: Client) -> None:
    answer = await client_at(ELSEWHERE).get("/traces", headers={"Accept": "text/html"})

    assert answer.status_code == 403
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "MLX_MANAGER_OPEN_UI=true" in answer.text


@pytest.mark.parametrize("path", ["/api/version", "/openapi.json", "/static/style.css"])
async def test_what_gives_nothing_away_is_open_to_all(client_at: Client, path: str) -> None:
    assert (await client_at(ELSEWHERE).get(path)).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:10242", "[::1]:10242", "127.8.9.10", "mlx.localhost"]
)
async def test_names_of_this_machine_are_its_own(client_at: Client, host: str) -> None:
    answer = await client_at(host=host).get("/settings")

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "192.0.2.1", "localhost.evil.example:80"]
)
async def test_a_name_that_was_bent_to_this_machine_is_refused(
    client_at: Client, host: str
) -> None:
    answer = await client_at(host=host).get("/settings")

    assert answer.status_code == 403
    assert answer.json()["code"] == "wrong_host"
    assert "MLX_MANAGER_HOST_NAMES" in answer.json()["detail"]


async def test_open_pages_are_reached_by_address_and_by_the_names_given(client_at: Client) -> None:
    opened = {"open_ui": True, "host_names": "studio.example, other.example"}

    for host, status in (("192.0.2.1", 200), ("Studio.Example", 200), ("evil.example", 403)):
        answer = await client_at(ELSEWHERE, host, **opened).get("/settings")
        assert answer.status_code == status, host
        assert ("open to other machines" in answer.text) is (status == 200)
    assert "local only" in (await client_at().get("/settings")).text


@pytest.mark.parametrize(
    ("header", "name"),
    [("localhost", "localhost"), ("A.b:80", "a.b"), ("[::1]:80", "::1"), ("::1", "::1"), ("", "")],
)
def test_a_host_header_is_read_without_its_port(header: str, name: str) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("::ffff:127.0.0.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhosts", False),
        ("", False),
    ],
)
def test_loopback_is_what_never_leaves_the_machine(name: str, expected: bool) -> None:
    assert is_loopback(name) is expected
