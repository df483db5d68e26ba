"""`POST /v1/embeddings`, with the `openai` package, against models whose vectors are known."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai as sdk
import pytest
from openai import AsyncOpenAI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from mlx_manager.mlx_server.app import create_app
from mlx_manager.mlx_server.audit.search import RequestFilter, search
from mlx_manager.observability.setup import TelemetryOptions, configure
from tests.conftest import TINY
from tests.support.encoders import HIDDEN, SENTENCES, Kind, expected, make_encoder, token_ids
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans, UntracedTransport, ids

BERT, ROBERTA, PROMPTED = "test/bert", "test/roberta", "test/prompted"
KINDS = {BERT: Kind(max_tokens=24), ROBERTA: Kind("roberta", "cls"), PROMPTED: Kind(seed=1)}
PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """A folder with encoders, one broken one and a language model."""
    folder = tmp_path_factory.mktemp("encoders")
    make_encoder(folder / BERT, KINDS[BERT])
    make_encoder(folder / ROBERTA, KINDS[ROBERTA])
    prompts = {"query": "query: ", "document": ""}
    make_encoder(folder / PROMPTED, KINDS[PROMPTED], prompts=prompts, default_prompt_name="query")
    broken = make_encoder(folder / "test" / "broken")
    (broken / "modules.json").write_text('[{"type": "Dense", "path": ""}]')
    shutil.copytree(model_dir / TINY, folder / TINY)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[RunningServer]:
    configure(TelemetryOptions("mlx-test"))
    settings = settings_for(tmp_path_factory.mktemp("server"), models, max_loaded_models=6)
    with running(create_app(settings)) as server:
        yield server


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client that leaves no spans of its own."""
    transport = UntracedTransport()
    async with httpx.AsyncClient(base_url=server.url, transport=transport, timeout=60) as client:
        yield client


async def embed(client: AsyncOpenAI, given: Any, model: str = BERT, **more: Any) -> Any:
    return await client.embeddings.create(model=model, input=given, **more)


def distance(vector: list[float], folder: Path, model: str, wanted: list[int]) -> float:
    difference = np.array(vector) - expected(folder / model, wanted, KINDS[model])
    return float(np.abs(difference).max())


@pytest.mark.parametrize("model", [BERT, ROBERTA])
@pytest.mark.parametrize("encoding_format", [None, "float", "base64"])
async def test_texts_become_their_vectors_in_their_order(
    openai: AsyncOpenAI, models: Path, model: str, encoding_format: str | None
) -> None:
    more = {} if encoding_format is None else {"encoding_format": encoding_format}
    answer = await embed(openai, SENTENCES, model, **more)

    assert (answer.object, answer.model) == ("list", model)
    assert [one.index for one in answer.data] == list(range(len(SENTENCES)))
    wanted = [token_ids(models / model, text) for text in SENTENCES]
    for one, text, ids_of_text in zip(answer.data, SENTENCES, wanted, strict=True):
        vector = one.embedding
        if encoding_format == "base64":
            # Asked for by name, the SDK hands it on as it came.
            vector = np.frombuffer(base64.b64decode(vector), "<f4").tolist()
        assert distance(vector, models, model, ids_of_text) < 1e-5, text
    tokens = sum(map(len, wanted))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


async def test_one_text_one_list_of_token_ids_and_many_of_them_are_inputs_too(
    openai: AsyncOpenAI, models: Path
) -> None:
    text = await embed(openai, SENTENCES[0])
    given = token_ids(models / BERT, SENTENCES[0])
    one = await embed(openai, given)
    many = await embed(openai, [[2, 9, 3], given])

    assert len(text.data) == len(one.data) == 1
    assert np.abs(np.array(text.data[0].embedding) - one.data[0].embedding).max() < 1e-6
    assert distance(many.data[0].embedding, models, BERT, [2, 9, 3]) < 1e-5
    assert distance(many.data[1].embedding, models, BERT, given) < 1e-5
    assert many.usage.prompt_tokens == 3 + len(given)


async def test_fewer_dimensions_are_the_first_ones_at_length_one(openai: AsyncOpenAI) -> None:
    whole = np.array((await embed(openai, SENTENCES[0])).data[0].embedding)
    short = np.array((await embed(openai, SENTENCES[0], dimensions=8)).data[0].embedding)
    assert short.shape == (8,)
    assert np.abs(short - whole[:8] / np.linalg.norm(whole[:8])).max() < 1e-6


async def test_as_many_inputs_as_may_be_come_back_in_their_order(
    openai: AsyncOpenAI, models: Path
) -> None:
    given = [[2, *range(4, 4 + index % 19), 3] for index in range(2048)]
    answer = await embed(openai, given)
    assert len(answer.data) == 2048
    for index in (0, 1, 18, 1000, 2047):
        assert distance(answer.data[index].embedding, models, BERT, given[index]) < 1e-5


async def test_a_model_s_own_prompts_stand_before_texts(openai: AsyncOpenAI, models: Path) -> None:
    by_default = await embed(openai, "mat", PROMPTED)
    bare = await embed(openai, "mat", PROMPTED, extra_body={"prompt_name": "document"})
    wanted = token_ids(models / PROMPTED, "query: mat")
    assert distance(by_default.data[0].embedding, models, PROMPTED, wanted) < 1e-5
    wanted = token_ids(models / PROMPTED, "mat")
    assert distance(bare.data[0].embedding, models, PROMPTED, wanted) < 1e-5


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"input": ""}, "input", "input[0] is empty"),
        ({"input": []}, "input", "empty"),
        ({"input": ["a", ""]}, "input", "input[1] is empty"),
        ({"input": [[2], []]}, "input", "input[1] is empty"),
        ({"input": ["a"] * 2049}, "input", "2049 items; a request may have 2048"),
        ({"input": ["a", "the cat " * 20]}, "input", "input[1] has 42 tokens; test/bert takes 24"),
        ({"input": [5] * 25}, "input", "has 25 tokens; test/bert takes 24. Shorten it by 1 "),
        ({"input": [[5], [100_000]]}, "input", "100000 in input[1] is outside"),
        ({"input": [-1]}, "input", "-1"),
        ({"input": ["a", 5]}, "input", ""),
        ({"input": None}, "input", ""),
        ({"dimensions": HIDDEN + 1}, "dimensions", "33; the vectors of test/bert have 32"),
        ({"dimensions": 0}, "dimensions", ""),
        ({"encoding_format": "int8"}, "encoding_format", ""),
        ({"prompt_name": "query"}, "prompt_name", "no prompt 'query'. Those that it has: none"),
        ({"truncate": True}, "truncate", "Unknown parameter"),
    ],
)
async def test_what_is_wrong_or_not_supported_is_a_400_that_names_it(
    http: httpx.AsyncClient, changes: dict[str, Any], param: str, words: str
) -> None:
    response = await http.post(PATH, json={"model": BERT, "input": "a"} | changes)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


async def test_half_a_surrogate_pair_is_a_400(http: httpx.AsyncClient) -> None:
    body = b'{"model": "test/bert", "input": ["a", "\\ud800"]}'
    response = await http.post(PATH, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert "input[1] is not valid Unicode" in response.json()["error"]["message"]


async def test_a_limit_without_a_setting_is_that_of_the_positions(openai: AsyncOpenAI) -> None:
    """Of RoBERTa's 66, two are the padding token's."""
    assert len((await embed(openai, [5] * 64, ROBERTA)).data) == 1
    with pytest.raises(
        sdk.BadRequestError, match="has 65 tokens; test/roberta takes 64"
    ) as refusal:
        await embed(openai, [5] * 65, ROBERTA)
    assert refusal.value.code == "context_length_exceeded"


async def test_a_harmless_parameter_is_accepted(openai: AsyncOpenAI) -> None:
    assert len((await embed(openai, "a", user="someone")).data) == 1


async def test_a_model_of_the_other_kind_is_a_400_that_names_those_that_would_do(
    openai: AsyncOpenAI,
) -> None:
    for _ in range(2):  # before and after it is in memory
        with pytest.raises(sdk.BadRequestError) as refusal:
            await embed(openai, "a", TINY)
        assert refusal.value.code == "wrong_model_kind"
        assert f"make embeddings: {BERT}, test/broken, {PROMPTED}, {ROBERTA}." in str(refusal.value)
        await openai.completions.create(model=TINY, prompt="a", max_tokens=1)
    messages: Any = [{"role": "user", "content": "a"}]
    with pytest.raises(sdk.BadRequestError, match=f"make text: .*{TINY}") as refusal:
        await openai.chat.completions.create(model=BERT, messages=messages)
    assert (refusal.value.code, refusal.value.param) == ("wrong_model_kind", "model")
    with pytest.raises(sdk.BadRequestError, match="makes embeddings, not text"):
        await openai.completions.create(model=BERT, prompt="a")


async def test_unknown_models_and_those_that_cannot_be_loaded_are_told(openai: AsyncOpenAI) -> None:
    with pytest.raises(sdk.NotFoundError):
        await embed(openai, "a", "no/such")
    with pytest.raises(sdk.InternalServerError, match="step 'Dense' of modules") as failure:
        await embed(openai, "a", "test/broken")
    assert failure.value.code == "model_load_failed"


async def test_models_are_listed_as_before(openai: AsyncOpenAI) -> None:
    listed = {model.id: model async for model in openai.models.list()}
    assert {BERT, TINY} <= listed.keys()
    assert set(listed[BERT].model_dump()) == set(listed[TINY].model_dump())


async def test_many_requests_at_once_get_their_own_vectors(
    openai: AsyncOpenAI, models: Path
) -> None:
    given = [[[2, *range(4 + n, 10 + n), 3], [2, 4 + n, 3]] for n in range(40)]
    answers = await asyncio.gather(*(embed(openai, one) for one in given))
    for inputs, answer in zip(given, answers, strict=True):
        for wanted, one in zip(inputs, answer.data, strict=True):
            assert distance(one.embedding, models, BERT, wanted) < 1e-5


async def test_a_request_is_one_trace_with_its_phases_and_one_row(
    client: httpx.AsyncClient, server: RunningServer, spans: Spans
) -> None:
    body = {"model": BERT, "input": ["a cat", "a dog"], "encoding_format": "float", "dimensions": 8}
    await client.post(PATH, json=body)
    response = await client.post(PATH, json=body)
    await server.close_books()

    trace_id, request_id = response.headers["X-Trace-ID"], response.headers["X-Request-ID"]
    found = [span for span in spans.all if ids(span.context)[0] == trace_id]
    (work,) = (span for span in found if span.name == f"embeddings {BERT}")
    said = dict(work.attributes or {})
    assert said["gen_ai.operation.name"] == "embeddings"
    assert said["gen_ai.provider.name"] == "mlx"
    assert said["gen_ai.request.model"] == said["gen_ai.response.model"] == BERT
    assert said["gen_ai.usage.input_tokens"] == response.json()["usage"]["prompt_tokens"]
    assert said["gen_ai.embeddings.dimension.count"] == 8
    assert said["gen_ai.request.encoding_formats"] == ("float",)
    assert said["mlx.request.id"] == request_id
    assert said["mlx.request.inputs"] == 2
    phases = [span for span in found if span.parent and span.parent.span_id == work.context.span_id]
    phases.sort(key=lambda span: span.start_time or 0)
    assert [span.name for span in phases] == ["route", "tokenize", "queue", "compute"]
    for before, after in pairwise(phases):
        assert (before.end_time or 0) <= (after.start_time or 0)
    computed = dict(phases[-1].attributes or {})
    assert computed["mlx.compute.tokens"] == said["gen_ai.usage.input_tokens"]
    assert computed["mlx.compute.batches"] == 1
    assert computed["mlx.batch.width_max"] == 2
    await eventually(lambda: len(server.audited(request_id)) == 1)
    (row,) = server.audited(request_id)
    assert (row.status, row.outcome, row.trace_id) == (200, "completed", trace_id)
    assert (row.input_tokens, row.output_tokens) == (said["gen_ai.usage.input_tokens"], 0)


async def test_the_audit_log_says_what_was_done(
    client: httpx.AsyncClient, server: RunningServer
) -> None:
    response = await client.post(PATH, json={"model": BERT, "input": ["a", "a b"]})
    request_id = response.headers["X-Request-ID"]
    await eventually(lambda: len(server.audited(request_id)) == 1)
    async with server.state.database.sessions() as session:
        [row] = await search(session, RequestFilter(request_id=request_id), 10)
    assert (row.endpoint, row.operation, row.backend) == (PATH, "embeddings", "local")
    assert (row.model, row.response_model, row.stream) == (BERT, BERT, False)
    assert (row.status, row.outcome, row.error_code, row.error_type) == (
        200,
        "completed",
        None,
        None,
    )
    assert row.input_tokens == response.json()["usage"]["prompt_tokens"]
    assert (row.cached_tokens, row.output_tokens, row.finish_reason) == (0, 0, None)
    assert (row.time_to_first_token_s, row.client_address) == (None, "127.0.0.1")
    assert 0 <= (row.queue_s or 0.0) <= (row.duration_s or 0.0)
    assert row.trace_id == response.headers["X-Trace-ID"]


async def test_a_refusal_is_an_error_of_the_phase_in_which_it_happened(
    client: httpx.AsyncClient, server: RunningServer, spans: Spans
) -> None:
    await client.post(PATH, json={"model": BERT, "input": "a"})
    await server.close_books()
    spans.exporter.clear()
    response = await client.post(PATH, json={"model": BERT, "input": [5] * 25})
    await server.close_books()

    work = await spans.wait(f"embeddings {BERT}")
    assert response.status_code == 400
    assert work.status.status_code is StatusCode.ERROR
    assert (work.attributes or {})["error.type"] == "context_length_exceeded"
    assert (spans.one("tokenize").attributes or {})["error.type"] == "context_length_exceeded"
    assert spans.named("queue") == []
    request_id = response.headers["X-Request-ID"]
    await eventually(lambda: len(server.audited(request_id)) == 1)
    assert server.audited(request_id)[0].outcome == "failed"


async def held(server: RunningServer, client: httpx.AsyncClient) -> int:
    """Load the model, stop its engine process, and return its id: what it is sent waits."""
    await client.post(PATH, json={"model": ROBERTA, "input": "a"})
    engine = server.resident(ROBERTA).engine
    assert engine is not None
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    return engine.pid


async def test_a_client_that_leaves_frees_the_work(
    server: RunningServer, client: httpx.AsyncClient, spans: Spans
) -> None:
    pid = await held(server, client)
    await server.close_books()
    spans.exporter.clear()
    try:
        headers = {"X-Request-ID": "leaves-embeddings"}
        body = {"model": ROBERTA, "input": ["the cat"] * 500}
        asking = asyncio.create_task(client.post(PATH, json=body, headers=headers))
        await eventually(lambda: server.active(ROBERTA) == 1)
        asking.cancel()
        await eventually(lambda: server.resident(ROBERTA).leases == 0)
    finally:
        os.kill(pid, signal.SIGCONT)
    await eventually(lambda: server.active(ROBERTA) == 0)
    await eventually(lambda: len(server.audited("leaves-embeddings")) == 1)
    (row,) = server.audited("leaves-embeddings")
    assert (row.status, row.outcome) == (None, "cancelled")
    await server.close_books()
    work = await spans.wait(f"embeddings {ROBERTA}")
    assert (work.attributes or {})["mlx.cancelled"] is True
    assert work.status.status_code is StatusCode.UNSET


async def test_a_request_that_waited_links_to_the_one_whose_inputs_were_computed_first(
    server: RunningServer, client: httpx.AsyncClient, spans: Spans
) -> None:
    pid = await held(server, client)
    await server.close_books()
    spans.exporter.clear()
    try:
        large = {"model": ROBERTA, "input": ["the cat " * 8] * 1000}
        first = asyncio.create_task(client.post(PATH, json=large))
        await eventually(lambda: server.active(ROBERTA) == 1)
        second = asyncio.create_task(client.post(PATH, json={"model": ROBERTA, "input": "a"}))
        await eventually(lambda: server.active(ROBERTA) == 2)
    finally:
        os.kill(pid, signal.SIGCONT)
    before, waited = (await first).headers["X-Trace-ID"], (await second).headers["X-Trace-ID"]
    await server.close_books()

    def of(trace_id: str, name: str) -> ReadableSpan:
        [found] = [span for span in spans.named(name) if ids(span.context)[0] == trace_id]
        return found

    [link] = of(waited, "queue").links
    assert ids(link.context) == ids(of(before, f"embeddings {ROBERTA}").context)
    assert dict(link.attributes or {}) == {"mlx.link.reason": "waited_behind"}
    assert of(before, "queue").links == ()


async def test_a_request_whose_engine_is_killed_is_answered_by_a_fresh_one(
    server: RunningServer, client: httpx.AsyncClient, spans: Spans
) -> None:
    body = {"model": ROBERTA, "input": ["a", "the cat"]}
    before = (await client.post(PATH, json=body)).json()
    pid = await held(server, client)
    await server.close_books()
    spans.exporter.clear()
    asking = asyncio.create_task(client.post(PATH, json=body))
    await eventually(lambda: server.active(ROBERTA) == 1)
    os.kill(pid, signal.SIGKILL)
    assert (await asking).json() == before
    await server.close_books()
    work = await spans.wait(f"embeddings {ROBERTA}")
    assert (work.attributes or {})["mlx.resumes"] == 1
    resume = spans.one("resume").attributes or {}
    assert resume["mlx.resume.cause"] == "was killed by signal 9"


async def test_a_request_whose_time_is_up_is_ended(
    tmp_path: Path, models: Path, spans: Spans
) -> None:
    settings = settings_for(tmp_path, models, embeddings_timeout_s=0.5, preload=ROBERTA)
    with running(create_app(settings)) as slow:
        async with httpx.AsyncClient(base_url=slow.url, timeout=60) as client:
            pid = await held(slow, client)
            try:
                response = await client.post(PATH, json={"model": ROBERTA, "input": "a"})
            finally:
                os.kill(pid, signal.SIGCONT)
        request_id = response.headers["X-Request-ID"]
        await eventually(lambda: len(slow.audited(request_id)) == 1)
        (row,) = slow.audited(request_id)
        await eventually(lambda: slow.active(ROBERTA) == 0)
        await slow.close_books()
        # Another one held the engine.
        _holding, work = spans.named(f"embeddings {ROBERTA}")
        assert (work.attributes or {})["error.type"] == "request_timeout"
        assert work.status.status_code is StatusCode.ERROR
    assert (row.status, row.outcome, row.output_tokens) == (504, "failed", None)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "request_timeout"
    assert "Send fewer inputs" in response.json()["error"]["message"]
