"""What a trace says in one line, whatever order its spans come in."""

from __future__ import annotations

from itertools import permutations

import pytest

from mlx_manager.traces.summarise import model_requests, summarise
from tests.traces.records import S, chat, server, span, trace_id


def test_a_chat_over_http_is_told_by_its_server_and_its_chat() -> None:
    whole = [server(1, took_s=3), chat(1, at_s=0.5, took_s=2), span(1, 3, 2, at_s=1)]
    for spans in permutations(whole):
        line = summarise(trace_id(1), spans)
        assert (line.name, line.service, line.span_count) == (whole[0].name, "mlx-test", 3)
        assert (line.started_ns, line.duration_ns) == (whole[0].start_ns, 3 * S)
        assert (line.model, line.operation) == ("tiny", "chat")
        assert (line.provider, line.backend) == ("mlx", "local")
        assert (line.endpoint, line.http_status) == ("/v1/chat/completions", 200)
        assert (line.request_id, line.status, line.error_type) == ("request-1", "ok", None)
        assert (line.input_tokens, line.output_tokens, line.cached_tokens) == (10, 5, None)
        assert line.time_to_first_token_s == 0.25


@pytest.mark.parametrize("name", ["mlx.key.id", "enduser.id"])
def test_who_asked_is_told_by_our_key_or_by_what_others_call_their_user(name: str) -> None:
    assert summarise(trace_id(1), [chat(1, attributes={name: "laptop"})]).key_id == "laptop"
    ours_first = {"enduser.id": "somebody", "mlx.key.id": "laptop"}
    assert summarise(trace_id(1), [chat(1, attributes=ours_first)]).key_id == "laptop"


@pytest.mark.parametrize("name", ["gen_ai.conversation.id", "session.id"])
def test_a_session_is_told_by_the_conventions_name_or_the_older_one(name: str) -> None:
    assert summarise(trace_id(1), [chat(1, attributes={name: "s-1"})]).session == "s-1"


def test_the_tokens_of_several_chats_add_up() -> None:
    spans = [span(1, 1), chat(1, 2), chat(1, 3, at_s=1), chat(1, 4, at_s=2)]
    assert summarise(trace_id(1), spans).input_tokens == 30
    assert len(model_requests(spans)) == 3


def test_a_client_that_describes_our_request_once_more_is_not_counted() -> None:
    foreign = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 10}
    spans = [span(1, 8, attributes=foreign, service="agent"), server(1, 1, 8), chat(1)]
    line = summarise(trace_id(1), spans)
    assert (line.input_tokens, line.service) == (10, "agent")
    assert len(model_requests(spans)) == 1


def test_of_others_chats_only_the_outermost_counts() -> None:
    foreign = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "cloud"}
    agent = span(1, 1, attributes={"gen_ai.operation.name": "invoke_agent"})
    spans = [agent, span(1, 2, 1, attributes=foreign), span(1, 3, 2, attributes=foreign)]
    (request,) = model_requests(spans)
    assert request.model == "cloud"


def test_a_chat_that_was_refused_counts_without_a_model() -> None:
    (request,) = model_requests([server(1, attributes={"http.response.status_code": 400})])
    assert (request.model, request.status) == (None, "error")
    assert model_requests([server(1, attributes={"http.request.method": "GET"})]) == ()
    assert model_requests([server(1, attributes={"http.route": "/api/version"})]) == ()


@pytest.mark.parametrize(
    ("spans", "status", "error_type"),
    [
        ([server(1), chat(1, status="error", attributes={"error.type": "engine_failed"})], "error", "engine_failed"),
        ([server(1, attributes={"http.response.status_code": 404})], "error", "404"),
        ([server(1, attributes={"http.response.status_code": 499, "mlx.cancelled": True})], "cancelled", None),
        ([server(1), chat(1, attributes={"mlx.cancelled": True})], "cancelled", None),
        ([server(1), chat(1), span(1, 3, 2, status="error")], "ok", None),
        ([span(1, 1, status="error")], "error", None),
    ],
)  # fmt: skip
def test_the_status_is_that_of_what_was_asked_for(
    spans: list[object], status: str, error_type: str | None
) -> None:
    line = summarise(trace_id(1), spans)  # type: ignore[arg-type]
    assert (line.status, line.error_type) == (status, error_type)


def test_a_root_that_never_comes_and_parents_in_a_circle_are_no_trouble() -> None:
    orphan = summarise(trace_id(1), [span(1, 3, 99, at_s=2), span(1, 4, 98, at_s=1)])
    assert orphan.name == "span 4"
    circle = summarise(trace_id(1), [span(1, 1, 2), span(1, 2, 1)])
    assert circle.name in ("span 1", "span 2")


@pytest.mark.parametrize("value", ["12", -3, 2**62, True, 1.5, ("a",)])
def test_a_count_of_the_wrong_kind_is_none(value: object) -> None:
    line = summarise(trace_id(1), [chat(1, attributes={"gen_ai.usage.input_tokens": value})])
    assert line.input_tokens is None
