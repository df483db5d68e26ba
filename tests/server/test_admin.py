"""`/admin`: models in and out of memory by hand, within the budget, and requests that are ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai as sdk
import psutil
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from mlx_manager.app import create_app as create_manager
from mlx_manager.config import Settings as ManagerSettings
from mlx_manager.mlx_server.app import create_app
from mlx_manager.mlx_server.model_settings import ModelSettings
from tests.conftest import ENDLESS_TOKENS, TINY
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans, UntracedTransport
from tools.random_model import Shape, make_random_model

LATE, SHORT, BIG = "test/late", "test/short", "test/big"
KEY = "a-key-of-the-administrator"
MIB = 2**20
# Each small model is taken for 256 MiB of head room, a little of weights, keys and values, and 16 MiB of prefix cache.
BUDGET_MIB = 600
SET = {
    TINY: ModelSettings(aliases=("small", "gpt-x"), prefix_cache_mib=0, context_tokens=8192),
    "test/plain": ModelSettings(idle_unload_s=0.3),
    "test/odd": ModelSettings(family="nobody's"),
    "test/wide": ModelSettings(context_tokens=200_000),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("administered") / "models"
    (folder / "test").mkdir(parents=True)
    for name in ("tiny", "plain", "short", "late"):
        (folder / "test" / name).symlink_to(model_dir / "test" / name)
    for name in ("odd", "wide"):
        (folder / "test" / name).symlink_to(model_dir / "test" / "tiny")
    make_random_model(folder / BIG, Shape(hidden=512, intermediate=2048, layers=6, vocabulary=4096))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[RunningServer]:
    """A server with room for two small models, and a key for its administration."""
    settings = settings_for(
        tmp_path_factory.mktemp("admin"),
        models,
        models=SET,
        memory_budget_mib=BUDGET_MIB,
        prefix_cache_mib=16,
        admin_key=KEY,
    )
    with running(create_app(settings)) as server:
        yield server


@pytest.fixture
async def admin(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an empty server, that leaves no spans."""
    transport = UntracedTransport()
    async with httpx.AsyncClient(
        base_url=f"{server.url}/admin", transport=transport, timeout=60
    ) as client:
        await eventually(lambda: not any(one.leases for one in server.pool.residents))
        for resident in server.pool.residents:
            await did(client, "unload", resident.files.id)
        yield client


@pytest.fixture
async def openai(server: RunningServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


async def did(admin: httpx.AsyncClient, action: str, model: str) -> dict[str, Any]:
    answer = await admin.post(f"/models/{action}", json={"model": model})
    assert answer.status_code == 200, answer.text
    described: dict[str, Any] = answer.json()
    return described


async def listed(admin: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    report = (await admin.get("/models")).json()
    return {"memory": report["memory"]} | {model["id"]: model for model in report["models"]}


async def ask(openai: AsyncOpenAI, model: str, **more: Any) -> Any:
    asked: Any = {"model": model, "prompt": "x", "max_tokens": 2, "temperature": 0} | more
    return await openai.completions.create(**asked)


@asynccontextmanager
async def endless(
    openai: AsyncOpenAI, server: RunningServer, model: str, request_id: str
) -> AsyncIterator[Any]:
    """A stream that goes on and on, once its first piece is there."""
    stream = await ask(
        openai,
        model,
        max_tokens=ENDLESS_TOKENS,
        stream=True,
        extra_headers={"X-Request-ID": request_id},
    )
    async with stream:
        await anext(aiter(stream))
        yield stream


async def test_all_models_are_listed_with_their_state_and_memory(
    admin: httpx.AsyncClient, server: RunningServer
) -> None:
    await did(admin, "load", SHORT)
    engine = server.resident(SHORT).engine
    assert engine
    await eventually(lambda: engine.vitals is not None)

    models = await listed(admin)

    assert {model: one["state"] for model, one in models.items() if model != "memory"} == {
        "mlx-manager/starter": "unloaded",
        **{f"test/{name}": "unloaded" for name in "big late odd plain tiny wide".split()},
        SHORT: "ready",
    }
    assert models[TINY]["aliases"] == ["small", "gpt-x"]
    loaded, memory = models[SHORT], models["memory"]
    assert loaded["reserved_bytes"] == {
        "weights": loaded["held_bytes"]["weights"],
        "kv": 256 * 2 * 2 * 2 * 16 * 4,
        "prefix_cache": 16 * MIB,
        "head_room": 256 * MIB,
    }
    assert loaded["committed_bytes"] == sum(loaded["reserved_bytes"].values())
    assert (loaded["requests"], loaded["engine_restarts"]) == (0, 0)
    assert 0 <= loaded["idle_s"] < 60
    assert memory == {
        "budget_bytes": BUDGET_MIB * MIB,
        "committed_bytes": loaded["committed_bytes"],
        "free_bytes": BUDGET_MIB * MIB - loaded["committed_bytes"],
    }


async def test_it_is_told_how_fast_a_model_is_alone_and_in_company(
    admin: httpx.AsyncClient, server: RunningServer, openai: AsyncOpenAI
) -> None:
    await did(admin, "load", SHORT)
    assert (await listed(admin))[SHORT]["batch"] == []

    long: dict[str, Any] = {"max_tokens": 60, "extra_body": {"ignore_eos": True}}
    await ask(openai, SHORT, **long)
    await asyncio.gather(*(ask(openai, SHORT, **long) for _ in range(3)))
    await eventually(lambda: 1 in _widths(server) and len(_widths(server)) > 1)

    batch = (await listed(admin))[SHORT]["batch"]
    assert [one["rows"] for one in batch] == sorted(_widths(server))
    for one in batch:
        assert one["tokens_per_s"] == pytest.approx(one["rows"] * 1000 / one["step_ms"])


def _widths(server: RunningServer) -> set[int]:
    engine = server.resident(SHORT).engine
    return {one.rows for one in engine.vitals.batch_curve} if engine and engine.vitals else set()


async def test_an_unloaded_model_s_memory_is_really_back(
    admin: httpx.AsyncClient, server: RunningServer, models: Path
) -> None:
    weights = sum(file.stat().st_size for file in (models / BIG).glob("*.safetensors"))
    assert weights > 64 * MIB
    assert (await did(admin, "load", BIG))["state"] == "ready"
    engine = server.resident(BIG).engine
    assert engine
    assert engine.pid
    process = psutil.Process(engine.pid)
    assert process.memory_info().rss > weights
    before = psutil.virtual_memory().available

    unloaded = await did(admin, "unload", BIG)

    assert unloaded["state"] == "unloaded"
    assert unloaded["committed_bytes"] == 0
    assert not psutil.pid_exists(process.pid)
    assert (await listed(admin))["memory"]["committed_bytes"] == 0
    # Others use this machine, too, so it is looked at until it has been so once.
    await eventually(lambda: psutil.virtual_memory().available > before + weights / 2)


async def test_a_model_answers_to_its_aliases_and_is_listed_by_them(
    admin: httpx.AsyncClient, openai: AsyncOpenAI, server: RunningServer
) -> None:
    answer = await ask(openai, "gpt-x")
    assert answer.model == TINY
    assert [one.files.id for one in server.pool.residents] == [TINY]
    assert {"small", "gpt-x", TINY} <= {model.id async for model in openai.models.list()}
    assert (await openai.models.retrieve("gpt-x")).id == "gpt-x"
    assert (await did(admin, "unload", "small"))["id"] == TINY
    assert server.pool.residents == []


async def test_a_model_s_own_context_is_kept_to(
    admin: httpx.AsyncClient, openai: AsyncOpenAI
) -> None:
    with pytest.raises(sdk.BadRequestError, match="test/tiny takes 8192 with the answer"):
        await ask(openai, TINY, prompt=[5] * 8192)
    await ask(openai, LATE, prompt=[5] * 8192)


async def test_settings_that_a_model_can_not_have_are_refused_with_those_it_can(
    admin: httpx.AsyncClient, openai: AsyncOpenAI
) -> None:
    with pytest.raises(sdk.InternalServerError, match=r"no family .*hermes"):
        await ask(openai, "test/odd")
    with pytest.raises(sdk.InternalServerError, match=r"200000 .* allows 131072"):
        await ask(openai, "test/wide")


async def test_a_model_without_a_prefix_cache_of_its_own_keeps_nothing(
    admin: httpx.AsyncClient, openai: AsyncOpenAI
) -> None:
    for model, cached in ((TINY, 0), (LATE, 63)):
        await ask(openai, model, prompt=[9] * 64)
        again = await ask(openai, model, prompt=[9] * 64)
        assert again.usage.prompt_tokens_details.cached_tokens == cached, model


async def test_a_model_in_use_is_neither_unloaded_nor_makes_room_and_the_refusal_says_so(
    admin: httpx.AsyncClient, openai: AsyncOpenAI, server: RunningServer
) -> None:
    await did(admin, "pin", LATE)
    await did(admin, "load", LATE)
    try:
        async with endless(openai, server, TINY, "in-use"):
            refused = await admin.post("/models/unload", json={"model": TINY})
            assert (refused.status_code, refused.json()["code"]) == (409, "model_in_use")

            with pytest.raises(sdk.InternalServerError) as full:
                await ask(openai, SHORT)
            assert full.value.status_code == 503
            assert full.value.code == "insufficient_memory"
            assert full.value.response.headers["Retry-After"]
            for said in ("test/short does not fit: it needs", "in use by 1", "pinned", "600 MiB"):
                assert said in full.value.message

            async with AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
                with pytest.raises(anthropic.APIStatusError, match="does not fit: it needs") as met:
                    await client.messages.create(
                        model=SHORT, max_tokens=1, messages=[{"role": "user", "content": "x"}]
                    )
            assert met.value.status_code == 503
        assert (await did(admin, "unpin", LATE))["pinned"] is False
        await ask(openai, SHORT)
        assert LATE not in {one.files.id for one in server.pool.residents}
    finally:
        await did(admin, "unpin", LATE)


async def test_a_pin_says_whether_it_outlives_the_server(admin: httpx.AsyncClient) -> None:
    settings, by_hand = {"pin_source": "settings"}, {"pin_source": "by_hand"}
    first = (await listed(admin))[SHORT]
    assert first.items() >= (settings | {"pinned": False}).items()
    pinned = await did(admin, "pin", SHORT)
    unpinned = await did(admin, "unpin", SHORT)
    assert pinned.items() >= (by_hand | {"pinned": True}).items()
    assert unpinned.items() >= (by_hand | {"pinned": False}).items()


async def test_a_model_that_is_larger_than_the_budget_is_told_to_shrink(
    tmp_path: Path, models: Path
) -> None:
    with running(create_app(settings_for(tmp_path, models, memory_budget_mib=64))) as small:
        async with httpx.AsyncClient(base_url=small.url) as client:
            answer = await client.post("/admin/models/load", json={"model": BIG})
    assert (answer.status_code, answer.json()["code"]) == (503, "insufficient_memory")
    assert "Retry-After" not in answer.headers
    assert "Choose a smaller or more quantised model, or raise" in answer.json()["detail"]


async def test_how_far_a_load_has_come_is_told_while_it_goes_on(admin: httpx.AsyncClient) -> None:
    # On a busy machine a load may be over between two looks.
    for _ in range(5):
        loading, shares = asyncio.create_task(did(admin, "load", BIG)), list[float]()
        while not loading.done():
            share = (await listed(admin))[BIG]["loaded_share"]
            shares += [] if share is None else [share]
        assert (await loading)["loaded_share"] is None
        if any(share < 1 for share in shares):
            break
        await did(admin, "unload", BIG)
    assert any(0 < share < 1 for share in shares)
    assert shares == sorted(shares)
    assert max(shares) <= 1


async def test_stored_prompts_make_way_for_a_model_and_come_back_when_it_leaves(
    tmp_path: Path, models: Path
) -> None:
    """Two models of some 258 MiB fit without the 64 of each for stored prompts, not with them."""
    settings = settings_for(tmp_path, models, memory_budget_mib=540, prefix_cache_mib=64)
    with running(create_app(settings)) as server:
        async with (
            httpx.AsyncClient(base_url=f"{server.url}/admin", timeout=60) as admin,
            AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openai,
        ):

            async def cached() -> int:
                found = [await ask(openai, LATE, prompt=[9] * 64) for _ in range(2)]
                return int(found[1].usage.prompt_tokens_details.cached_tokens)

            async def set_aside() -> int:
                return int((await listed(admin))[LATE]["reserved_bytes"]["prefix_cache"])

            assert await cached() == 63
            await ask(openai, SHORT)
            both = await listed(admin)
            assert [both[one]["state"] for one in (LATE, SHORT)] == ["ready", "ready"]
            assert await set_aside() < 64 * MIB

            await did(admin, "unload", SHORT)
            assert await set_aside() == 64 * MIB
            assert await cached() == 63


async def test_an_idle_model_leaves_after_its_own_time(
    admin: httpx.AsyncClient, openai: AsyncOpenAI
) -> None:
    await ask(openai, "test/plain")
    await ask(openai, LATE)

    async def states() -> tuple[str, str]:
        models = await listed(admin)
        return models["test/plain"]["state"], models[LATE]["state"]

    for _ in range(100):
        if await states() == ("unloaded", "ready"):
            break
        await asyncio.sleep(0.1)
    assert await states() == ("unloaded", "ready")


async def test_a_request_is_listed_cancelled_and_its_client_told(
    admin: httpx.AsyncClient, openai: AsyncOpenAI, server: RunningServer
) -> None:
    async with endless(openai, server, TINY, "to-be-cancelled") as stream:
        [request] = (await admin.get("/requests")).json()["requests"]
        assert request["output_tokens"] > 0
        assert {
            name: request[name] for name in ("id", "model", "operation", "endpoint", "phase")
        } == {
            "id": "to-be-cancelled",
            "model": TINY,
            "operation": "text_completion",
            "endpoint": "/v1/completions",
            "phase": "decode",
        }

        answer = await admin.delete("/requests/to-be-cancelled")

        assert [one["id"] for one in answer.json()["requests"]] == ["to-be-cancelled"]
        with pytest.raises(sdk.APIError, match="administrator of this server cancelled") as met:
            async for _ in stream:
                pass
    assert met.value.code == "request_cancelled"
    await eventually(lambda: server.active(TINY) == 0)
    await eventually(lambda: server.resident(TINY).leases == 0)
    assert (await admin.get("/requests")).json()["requests"] == []
    await eventually(lambda: len(server.audited("to-be-cancelled")) == 1)
    assert server.audited("to-be-cancelled")[0].outcome == "failed"


async def test_a_whole_answer_is_cancelled_with_a_status_that_nobody_retries(
    admin: httpx.AsyncClient, server: RunningServer
) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        body = {"model": TINY, "prompt": "x", "temperature": 0, "max_tokens": 2000}
        headers = {"X-Request-ID": "whole"}
        asking = asyncio.create_task(client.post("/v1/completions", json=body, headers=headers))
        await eventually(
            lambda: any(one.origin.request_id == "whole" for one in server.state.running)
        )
        assert (await admin.delete("/requests/whole")).status_code == 200
        answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) == (499, "request_cancelled")


async def test_an_unknown_request_can_not_be_cancelled(admin: httpx.AsyncClient) -> None:
    answer = await admin.delete("/requests/nobody-s")
    assert (answer.status_code, answer.json()["code"]) == (404, "request_not_found")


async def test_a_load_by_hand_leaves_a_trace_that_says_what_it_took(
    admin: httpx.AsyncClient, server: RunningServer, spans: Spans
) -> None:
    for model in (TINY, LATE):
        await did(admin, "load", model)
    async with httpx.AsyncClient(base_url=server.url, transport=UntracedTransport()) as client:
        await client.post("/admin/models/load", json={"model": SHORT}, timeout=60)
        await client.post("/admin/models/load", json={"model": "no/such"})
    await eventually(lambda: len(spans.named("POST /admin/models/load")) == 4)
    loads = {
        (one.attributes or {})["mlx.model.reserved_bytes"]: one for one in spans.named("model.load")
    }
    load = max(loads.values(), key=lambda one: one.start_time or 0)
    attributes = load.attributes or {}
    assert attributes["mlx.model.evicted"] == (TINY,)
    assert attributes["mlx.model.load.share"] == 1.0
    assert 272 * MIB < attributes["mlx.model.reserved_bytes"] < 274 * MIB  # type: ignore[operator]
    assert attributes["mlx.model.source"] == "folder"
    [parent] = [
        one
        for one in spans.named("POST /admin/models/load")
        if load.parent and one.context.span_id == load.parent.span_id
    ]
    assert (parent.attributes or {})["http.response.status_code"] == 200
    assert not [one for one in spans.all if one.name.startswith("GET /admin")]


@pytest.mark.parametrize(
    ("address", "host", "headers", "status"),
    [
        ("127.0.0.1", "localhost:1", {}, 200),
        ("::1", "[::1]:1", {}, 200),
        ("192.0.2.7", "server:1", {}, 403),
        ("192.0.2.7", "localhost:1", {"Authorization": "Bearer wrong"}, 403),
        ("192.0.2.7", "server:1", {"Authorization": f"Bearer {KEY}"}, 200),
        # A page on the Internet that has given itself this machine's address.
        ("127.0.0.1", "evil.example:1", {}, 403),
    ],
)
async def test_administration_is_for_this_machine_and_for_who_has_the_key(
    server: RunningServer, address: str, host: str, headers: dict[str, str], status: int
) -> None:
    transport = httpx.ASGITransport(server.app, client=(address, 4711))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
        answer = await client.get("/admin/models", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "admin_forbidden"
        assert "MLX_SERVER_ADMIN_KEY" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_what_a_page_of_another_site_may_send_is_no_order(
    server: RunningServer, admin: httpx.AsyncClient, kind: str | None
) -> None:
    """A browser asks first before it sends JSON or a DELETE to another site, and gets no answer here."""
    headers = {} if kind is None else {"Content-Type": kind}
    answer = await admin.post("/models/load", content=json.dumps({"model": TINY}), headers=headers)
    assert answer.status_code == 422
    assert server.pool.residents == []


@pytest.mark.parametrize(
    ("opened", "headers", "status"),
    [
        (False, {}, 403),
        (True, {}, 200),
        (False, {"Authorization": f"Bearer {KEY}"}, 200),
        (False, {"Authorization": "Bearer wrong"}, 403),
    ],
)
async def test_in_the_manager_the_rules_of_its_pages_hold_and_the_key_as_well(
    tmp_path: Path, models: Path, opened: bool, headers: dict[str, str], status: int
) -> None:
    settings = settings_for(tmp_path, models, admin_key=KEY)
    with running(create_manager(settings, ManagerSettings(open_ui=opened))) as manager:
        transport = httpx.ASGITransport(manager.app, client=("192.0.2.7", 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://192.0.2.1") as client:
            answer = await client.get("/admin/models", headers=headers)
            other = await client.get("/api/traces", headers=headers)
    assert answer.status_code == status
    assert other.status_code == (200 if opened else 403), "the key is for administration only"
