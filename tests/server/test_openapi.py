"""Every operation of both applications keeps to what it says of itself in `/openapi.json`.

Requests are made from that description; `make fuzz` makes more of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks as keeping

from mlx_manager.app import create_app as create_manager
from mlx_manager.mlx_server.app import create_app as create_server
from tests.server.valid_bodies import ENCODER, MODEL
from tests.support.encoders import make_encoder
from tests.support.running import RunningServer, eventually, running, settings_for
from tools.random_model import Shape, make_random_model

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "6"))
SEED = int(os.environ.get("FUZZ_SEED", "20261125"))
TIMEOUT_S = 60
# These answer as long as somebody listens.
ENDLESS = {"/api/events"}
CHECKS = [
    schemathesis.checks.not_a_server_error,
    keeping.status_code_conformance,
    keeping.content_type_conformance,
    keeping.response_schema_conformance,
]


@pytest.fixture(scope="module", params=["server", "manager"])
def application(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Both of them, each with a small model and an encoder."""
    folder = tmp_path_factory.mktemp(f"described-{request.param}")
    make_random_model(folder / "models" / MODEL, Shape(context=256))
    make_encoder(folder / "models" / ENCODER)
    values = settings_for(folder, folder / "models", max_body_bytes=2**20)
    create: Any = create_server if request.param == "server" else create_manager
    with running(create(values)) as server:
        yield server


def sharpened(body: Any, operation: Any) -> Any:
    """The body for a model that is there, and mostly without the names that nobody knows, which are all refused."""
    if not isinstance(body, dict):
        return body
    known = set(operation.body[0].definition["schema"].get("properties", body))
    kept = {name: value for name, value in body.items() if name in known}
    if "model" in kept:
        kept["model"] = ENCODER if "embeddings" in operation.path else MODEL
    return kept


def complaints_of(operation: Any) -> list[str]:
    """Ask an operation what its description allows, and return what is wrong with the answers."""
    found = dict[str, str]()

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        if operation.body:
            case.body = sharpened(case.body, operation)
        response = case.call(timeout=TIMEOUT_S)
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as failures:
            for failure in failures.exceptions:
                found[str(failure)[:200]] = f"{case.as_curl_command()[:700]}\n{response.text[:300]}"

    ask()
    return [f"{operation.method} {operation.path}: {what}\n{how}" for what, how in found.items()]


# The server runs in a thread of this process, and what it draws looks as if a strategy had drawn it.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
async def test_every_operation_keeps_to_its_description(application: RunningServer) -> None:
    description = schemathesis.openapi.from_url(f"{application.url}/openapi.json")
    found: list[Any] = list(description.get_all_operations())
    operations = [one.ok() for one in found]
    assert len(operations) > 15
    complaints = [
        complaint
        for operation in operations
        if operation.path not in ENDLESS
        for complaint in complaints_of(operation)
    ]
    assert not complaints, "\n".join(complaints[:20])
    await eventually(
        lambda: all(application.active(one.files.id) == 0 for one in residents(application))
    )


def residents(application: RunningServer) -> list[Any]:
    return list(application.pool.residents)
