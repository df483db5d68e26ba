"""Each rule that explains a trace: what it says, what it points to, and where it must stay silent."""

from __future__ import annotations

from typing import Literal

import pytest

from mlx_manager.observability.span_record import SpanEvent, SpanLink, SpanRecord, Value
from mlx_manager.traces import explain as rules
from mlx_manager.traces.explain import RULES, Finding, Rule, explain
from mlx_manager.traces.summary import Trace
from tests.support.recorded import BEGIN_NS, chat_trace, id_of, span, trace

MS = 1_000_000
OTHER = "b" * 32


def only(rule: Rule, found: Trace) -> Finding:
    (finding,) = rule(found)
    return finding


def silent(rule: Rule, found: Trace) -> bool:
    return list(rule(found)) == []


def test_a_load_is_the_first_thing_said_when_it_took_longest() -> None:
    found = chat_trace(
        span("model.load", 2, 802),
        span("prefill", 810, 830, mlx__prefill__tokens=40, mlx__cache__matched_tokens=0),
        span("decode", 830, 990, mlx__decode__tokens=20, mlx__decode__tokens_per_s=118.75),
    )

    findings = explain(found)

    assert [finding.rule for finding in findings] == ["model-load", "decode", "prefill"]
    assert findings[0].sentence == "The model was not in memory and had to be loaded first: 800 ms."
    assert findings[0].span_id == id_of("model.load")
    assert findings[0].duration_ns == 800_000_000


def test_the_time_that_the_model_thought_is_told_with_its_tokens() -> None:
    events = (
        SpanEvent("reasoning.began", BEGIN_NS + 100 * MS),
        SpanEvent("reasoning.ended", BEGIN_NS + 600 * MS),
        SpanEvent("tool_call.began", BEGIN_NS + 650 * MS),
    )
    found = only(
        rules.model_thought,
        chat_trace(
            span("parse", 100, 900, events=events),
            chat={"gen_ai.usage.reasoning.output_tokens": 40},
        ),
    )
    assert found.sentence == "The model reasoned for 500 ms, 40 tokens, before it answered."
    assert (found.duration_ns, found.span_id) == (500 * MS, id_of("parse"))


def test_thoughts_without_an_end_last_as_long_as_the_span() -> None:
    events = (SpanEvent("reasoning.began", BEGIN_NS + 100 * MS),)
    found = only(rules.model_thought, chat_trace(span("parse", 100, 900, events=events)))
    assert found.sentence == "The model reasoned for 800 ms before it answered."


def test_an_answer_without_thoughts_says_nothing_of_any() -> None:
    events = (SpanEvent("tool_call.began", BEGIN_NS + 650 * MS),)
    assert silent(rules.model_thought, chat_trace(span("parse", 100, 900, events=events)))


def test_a_model_in_memory_is_no_finding() -> None:
    assert silent(rules.model_was_loaded, chat_trace(span("decode", 10, 900)))


def test_the_trace_that_was_waited_for_is_named() -> None:
    links = (SpanLink(OTHER, "c" * 16), SpanLink("d" * 32, "e" * 16))
    found = only(rules.waited_in_queue, chat_trace(span("queue", 5, 305, links=links)))

    assert found.sentence == "Waited 300 ms in the queue behind trace bbbbbbbb… and 1 other."
    assert found.trace_id == OTHER


@pytest.mark.parametrize(
    ("reason", "cached", "said"),
    [
        ("nothing_stored", 0, "none cached because nothing was stored yet"),
        ("diverged", 0, "none cached because no stored prompt begins like it"),
        ("diverged", 96, "96 from the prefix cache, where it leaves what is stored at token 97"),
        ("unsupported_model", 0, "none cached because this model’s state can’t be brought back"),
        ("too_short", 0, "none cached because so short a prompt isn’t worth it"),
        ("off", 0, "none cached because the prefix cache is switched off"),
        ("no_room", 0, "none cached because other models have the memory of stored prompts"),
    ],
)
def test_why_a_prompt_was_computed_is_told(reason: str, cached: int, said: str) -> None:
    prefill = span(
        "prefill",
        10,
        500,
        mlx__prefill__tokens=400,
        mlx__cache__matched_tokens=cached,
        mlx__cache__miss_reason=reason,
    )
    found = only(rules.prompt_was_computed, chat_trace(prefill))
    assert found.sentence.endswith(f"computed, {said}.")


def test_what_came_from_files_says_how_long_that_took() -> None:
    prefill = span(
        "prefill",
        10,
        500,
        mlx__prefill__tokens=1,
        mlx__cache__matched_tokens=400,
        mlx__cache__restore_s=0.31,
    )
    found = only(rules.prompt_was_computed, chat_trace(prefill))
    assert found.sentence.endswith(
        "400 from the prefix cache; 310 ms went by until files of the cache were read."
    )


@pytest.mark.parametrize(
    ("reason", "cached", "said"),
    [
        (
            "diverged",
            96,
            "96 from the prefix cache, where it leaves what is stored at token 120, in tools",
        ),
        (
            "no_snapshot",
            96,
            "96 from the prefix cache because no snapshot of this model’s state lies behind more of it; it leaves "
            "what is stored at token 120, in tools",
        ),
    ],
)
@pytest.mark.parametrize("content", [True, False])
def test_where_a_prompt_leaves_what_is_stored_is_told(
    reason: str, cached: int, said: str, *, content: bool
) -> None:
    prefill = span(
        "prefill",
        10,
        500,
        mlx__prefill__tokens=400,
        mlx__cache__matched_tokens=cached,
        mlx__cache__miss_reason=reason,
        mlx__cache__miss_token=119,
        mlx__cache__miss_field="tools",
    )
    texts = {"mlx.cache.miss_text": "Tuesday", "mlx.cache.stored_text": "Monday"}
    found = only(rules.prompt_was_computed, chat_trace(prefill, chat=texts if content else {}))
    in_words = ", with “Tuesday” instead of “Monday”" if content else ""
    assert found.sentence.endswith(f"computed, {said}{in_words}.")


def test_the_trace_that_read_what_prompts_share_is_named() -> None:
    links = (SpanLink(OTHER, "c" * 16), SpanLink("d" * 32, "e" * 16))
    queue = span("queue", 5, 305, links=links, mlx__queue__shared_prefix_s=0.2)
    found = only(rules.waited_in_queue, chat_trace(queue))
    read = "200 ms of it while trace bbbbbbbb… read what both prompts begin with"
    assert found.sentence == f"Waited 300 ms in the queue, {read}."
    assert found.trace_id == OTHER
    both = span("queue", 5, 305, links=links, mlx__queue__shared_prefix_s=0.2,
                mlx__queue__reason="memory", mlx__queue__kv_bytes=2048)  # fmt: skip
    memory = "for memory: its keys and values may need 2.00 KiB"
    said = only(rules.waited_in_queue, chat_trace(both)).sentence
    assert said == f"Waited 300 ms in the queue {memory}, {read}."


def test_a_queue_without_links_names_nobody() -> None:
    found = only(rules.waited_in_queue, chat_trace(span("queue", 5, 305)))

    assert found.sentence == "Waited 300 ms in the queue for a place in the batch."
    assert found.trace_id is None


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("places", "Waited 300 ms in the queue for a place in the batch."),
        ("prompts", "Waited 300 ms in the queue until prompts of others had been read."),
        ("memory", "Waited 300 ms in the queue for memory: its keys and values may need 1.50 GiB."),
        ("tides", "Waited 300 ms in the queue for a place in the batch."),
    ],
)
def test_what_a_request_waited_for_is_told(reason: str, said: str) -> None:
    queue = span("queue", 5, 305, mlx__queue__reason=reason, mlx__queue__kv_bytes=3 * 2**29)
    assert only(rules.waited_in_queue, chat_trace(queue)).sentence == said


def test_a_request_that_others_overtook_says_how_many_and_by_what_priority() -> None:
    queue = span(
        "queue",
        5,
        305,
        links=(SpanLink(OTHER, "c" * 16),),
        mlx__queue__reason="places",
        mlx__queue__priority="low",
        mlx__queue__overtaken=3,
    )
    assert only(rules.waited_in_queue, chat_trace(queue)).sentence == (
        "Waited 300 ms in the queue behind trace bbbbbbbb… for a place in the batch, while 3 requests that came later "
        "went first; its priority was low."
    )


@pytest.mark.parametrize("end_ms", [5.5, 14], ids=["below a millisecond", "below a hundredth"])
def test_a_short_wait_is_no_finding(end_ms: float) -> None:
    waited = span("queue", 5, end_ms)

    assert silent(rules.waited_in_queue, chat_trace(waited, server_ms=2000))


def test_a_prefill_says_what_was_cached_and_why_not_more() -> None:
    phase = span(
        "prefill",
        10,
        320,
        mlx__prefill__tokens=812,
        mlx__cache__matched_tokens=1236,
        mlx__cache__miss_reason="prompt_differs_from_token_1236",
    )

    assert only(rules.prompt_was_computed, chat_trace(phase)).sentence == (
        "Prefill took 310 ms: 812 of 2,048 prompt tokens computed, 1,236 from the prefix cache because prompt differs "
        "from token 1236."
    )


def test_a_prefill_of_another_programs_span_is_none_of_ours() -> None:
    foreign = span("prefill", 10, 500, "POST /v1/chat/completions", mlx__prefill__tokens=1)

    assert silent(rules.prompt_was_computed, chat_trace(foreign))


@pytest.mark.parametrize(
    ("widest", "mean", "says"),
    [
        (1, 1.0, "alone in the batch"),
        (8, 3.42, "in a batch 3.4 wide on average and 8 at most"),
    ],
)
def test_decoding_says_how_fast_and_with_whom(widest: int, mean: float, says: str) -> None:
    found = only(
        rules.answer_was_decoded,
        chat_trace(
            span(
                "decode",
                100,
                900,
                mlx__decode__tokens=241,
                mlx__decode__tokens_per_s=300.0,
                mlx__batch__width_max=widest,
                mlx__batch__width_mean=mean,
            )
        ),
    )

    assert found.sentence == f"Decoding 241 tokens took 800 ms at 300.0 tokens/s, {says}."


def test_a_request_that_decoded_nothing_says_nothing_about_it() -> None:
    assert silent(rules.answer_was_decoded, chat_trace(span("prefill", 5, 900)))


def paused(gap_s: float, widest: int = 1, events: tuple[SpanEvent, ...] = ()) -> SpanRecord:
    return span(
        "decode",
        100,
        900,
        mlx__decode__tokens=82,
        mlx__decode__longest_gap_s=gap_s,
        mlx__batch__width_max=widest,
        events=events,
    )


def stall(duration_s: float, **attributes: Value) -> SpanEvent:
    return SpanEvent("stall", 0, {"mlx.stall.duration_s": duration_s} | attributes)


@pytest.mark.parametrize(
    ("events", "cause"),
    [
        ((stall(0.3), stall(0.4, **{"mlx.stall.cause": "prefill"})), "were prefilled."),
        ((stall(0.4), stall(0.3, **{"mlx.stall.cause": "prefill"})), "no prompt of another"),
        ((stall(0.3),), "most likely while prompts"),
        ((SpanEvent("other", 0, {"mlx.stall.duration_s": 0.4}),), "most likely while prompts"),
    ],
    ids=["prefill", "not prefill", "another pause", "another event"],
)
def test_what_the_engine_knows_of_a_pause_goes_before_what_is_likely(
    events: tuple[SpanEvent, ...], cause: str
) -> None:
    found = only(rules.decoding_paused, chat_trace(paused(0.4, widest=4, events=events)))

    assert cause in found.sentence
    assert ("most likely" in found.sentence) == cause.startswith("most likely")


def test_a_long_pause_is_told_apart_from_the_usual_time_between_tokens() -> None:
    found = only(rules.decoding_paused, chat_trace(paused(0.4, widest=4)))

    assert found.duration_ns == 400_000_000
    assert found.sentence == (
        "The longest pause between two tokens was 400 ms, where 5.0 ms is usual, most likely while prompts of other "
        "requests were prefilled."
    )


def test_a_pause_without_company_blames_nobody() -> None:
    found = only(rules.decoding_paused, chat_trace(paused(0.4, widest=1)))

    assert found.sentence.endswith("with no other request in its batch.")


@pytest.mark.parametrize("gap_s", [0.0099, 0.03], ids=["short", "not unusual here"])
def test_an_even_answer_has_no_pause(gap_s: float) -> None:
    assert silent(rules.decoding_paused, chat_trace(paused(gap_s)))


def test_a_reader_that_lags_behind_the_engine_is_slow() -> None:
    found = only(rules.reader_was_slow, chat_trace(span("decode", 10, 400), server_ms=1000))

    assert found.duration_ns == 600_000_000
    assert found.sentence.startswith("The answer was complete 600 ms before its last byte")
    assert found.span_id == id_of("POST /v1/chat/completions")


def test_a_reader_that_keeps_up_is_not_slow() -> None:
    assert silent(rules.reader_was_slow, chat_trace(span("decode", 10, 980), server_ms=1000))


def test_a_reader_that_left_is_not_slow() -> None:
    left = chat_trace(span("decode", 10, 400), server_ms=1000, chat={"mlx.cancelled": True})

    assert silent(rules.reader_was_slow, left)


def test_tokenising_counts_when_it_takes_its_time() -> None:
    found = only(rules.prompt_was_tokenized, chat_trace(span("tokenize", 2, 92)))

    assert found.sentence == "Applying the chat template and encoding the prompt took 90.0 ms."
    assert silent(rules.prompt_was_tokenized, chat_trace(span("tokenize", 2, 4)))


def test_checking_the_key_and_choosing_a_backend_count() -> None:
    server = "POST /v1/chat/completions"
    found = chat_trace(span("authenticate", 2, 52, server), span("route", 52, 82))

    assert [finding.sentence for finding in rules.request_was_admitted(found)] == [
        "Checking the key took 50.0 ms.",
        "Choosing the backend took 30.0 ms.",
    ]
    assert silent(rules.request_was_admitted, chat_trace(span("authenticate", 2, 3, server)))
    assert silent(rules.request_was_admitted, chat_trace(span("authenticate", 2, 52, "another")))


def test_a_call_of_a_cloud_provider_is_named() -> None:
    called = span(
        "chat gpt-5",
        10,
        900,
        kind="client",
        gen_ai__operation__name="chat",
        gen_ai__provider__name="openai",
        gen_ai__request__model="gpt-5",
    )

    found = only(rules.cloud_was_called, chat_trace(called))

    assert found.sentence == "The call of openai’s gpt-5 took 890 ms."
    assert silent(rules.cloud_was_called, chat_trace(span("GET", 10, 900, kind="client")))


def test_a_cloud_that_was_called_when_ours_had_failed_was_fallen_back_to() -> None:
    route = "POST /v1/chat/completions"
    cloud = span("chat gpt-5", 300, 900, route, kind="client", gen_ai__provider__name="openai",
                 gen_ai__operation__name="chat", gen_ai__request__model="gpt-5")  # fmt: skip
    ours = span("chat tiny", 1, 290, route, status="error", gen_ai__provider__name="mlx",
                gen_ai__operation__name="chat", error__type="engine_failed")  # fmt: skip
    server = span(route, 0, 910, None, kind="server")

    assert only(rules.cloud_was_called, trace(server, ours, cloud)).sentence == (
        "Fell back to openai’s gpt-5 when chat tiny failed with engine_failed: that call took 600 ms."
    )
    # One that failed later, or beside it, is no reason.
    late = span("chat tiny", 301, 890, route, status="error", gen_ai__provider__name="mlx",
                gen_ai__operation__name="chat")  # fmt: skip
    assert "Fell back" not in only(rules.cloud_was_called, trace(server, late, cloud)).sentence


def test_a_call_that_a_server_of_the_trace_answered_is_none_of_a_cloud() -> None:
    """Whoever calls us with OpenAI's SDK, traced, has a span of a call of OpenAI."""
    route = "POST /v1/chat/completions"
    call = span("chat tiny", 0, 300, None, kind="client", gen_ai__provider__name="openai",
                gen_ai__operation__name="chat", gen_ai__request__model="tiny")  # fmt: skip
    attempt = span("POST", 1, 299, "chat tiny", kind="client")
    server = span(route, 2, 298, "POST", kind="server")

    assert silent(rules.cloud_was_called, trace(call, attempt, server))
    assert not silent(rules.cloud_was_called, trace(call, attempt))


def test_calls_that_are_each_others_parents_do_not_hang_the_explanation() -> None:
    calls = [
        span("first", 0, 300, "second", kind="client", gen_ai__provider__name="openai"),
        span("second", 0, 300, "first", kind="client"),
        span("POST /v1/chat/completions", 2, 298, "first", kind="server"),
    ]
    assert silent(rules.cloud_was_called, trace(*calls))


def test_only_the_innermost_failure_is_told() -> None:
    failed = trace(
        span("POST /v1/chat/completions", 0, 100, None, kind="server", status="error"),
        span(
            "chat",
            1,
            99,
            "POST /v1/chat/completions",
            status="error",
            gen_ai__operation__name="chat",
            error__type="engine_failed",
        ),
    )

    found = only(rules.work_failed, failed)

    assert found.sentence == "chat failed with engine_failed after 98.0 ms."
    assert found.span_id == id_of("chat")
    assert silent(rules.work_failed, chat_trace(span("decode", 1, 900)))


def test_a_client_that_left_is_told_once() -> None:
    left = trace(
        span("POST /v1/chat/completions", 0, 100, None, kind="server", mlx__cancelled=True),
        span("chat", 1, 99, "POST /v1/chat/completions", mlx__cancelled=True),
    )

    assert only(rules.client_left, left).sentence == "The client left after 100 ms, before the end."
    assert silent(rules.client_left, chat_trace(span("decode", 1, 900)))


def test_the_wait_for_a_grammar_is_told_apart_from_that_for_a_place() -> None:
    event = SpanEvent(
        "grammar.ready",
        BEGIN_NS + 255 * MS,
        {"mlx.grammar.wait_s": 0.25, "mlx.grammar.compile_s": 0.2},
    )
    found = chat_trace(span("queue", 5, 305, events=(event,)))
    grammar, queue = only(rules.waited_for_grammar, found), only(rules.waited_in_queue, found)
    assert grammar.sentence == (
        "Waited 250 ms for the grammar that the answer is held to, which took 200 ms to compile."
    )
    assert (grammar.duration_ns, grammar.span_id) == (250 * MS, id_of("queue"))
    assert queue.sentence == "Waited 50.0 ms in the queue for a place in the batch."


def test_a_grammar_that_was_known_is_said_to_be() -> None:
    event = SpanEvent("grammar.ready", BEGIN_NS + 305 * MS, {"mlx.grammar.wait_s": 0.3})
    found = chat_trace(span("queue", 5, 305, events=(event,)))
    assert only(rules.waited_for_grammar, found).sentence == (
        "Waited 300 ms for the grammar that the answer is held to, which was known already."
    )
    assert silent(rules.waited_in_queue, found)


def test_an_answer_without_a_grammar_waited_for_none() -> None:
    assert silent(rules.waited_for_grammar, chat_trace(span("queue", 5, 305)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_rule_trips_over_attributes_of_another_type(rule: Rule) -> None:
    """Spans come from other programs too, which put there what they like."""
    odd: dict[str, Value] = {
        "mlx.prefill.tokens": "many",
        "mlx.cache.matched_tokens": True,
        "mlx.decode.tokens": ("a", "b"),
        "mlx.decode.longest_gap_s": "long",
        "mlx.batch.width_max": "wide",
        "mlx.cancelled": "yes",
        "error.type": 5,
        "gen_ai.provider.name": 7,
    }
    names = ("model.load", "tokenize", "queue", "prefill", "decode", "authenticate", "route")
    phases = [
        span(name, 10 * at, 10 * at + 9, status="error", also=odd) for at, name in enumerate(names)
    ]
    called = span("call", 2, 90, kind="client", status="error", also=odd)

    for finding in rule(chat_trace(*phases, called)):
        assert finding.sentence.endswith(".")


def test_computing_embeddings_says_how_much_it_was() -> None:
    phase = span("compute", 5, 305, mlx__compute__tokens=1200, mlx__compute__batches=3)

    found = only(rules.inputs_were_computed, chat_trace(phase))

    assert found.sentence == "Computing the embeddings took 300 ms: 1,200 tokens in 3 steps."
    assert found.span_id == id_of("compute")


def test_embeddings_that_were_cut_short_have_no_numbers() -> None:
    found = only(rules.inputs_were_computed, chat_trace(span("compute", 5, 305)))

    assert found.sentence == "Computing the embeddings took 300 ms."


def test_a_chat_computes_no_embeddings() -> None:
    assert silent(rules.inputs_were_computed, chat_trace(span("decode", 5, 305)))


@pytest.mark.parametrize(
    ("after", "attempts", "status", "said"),
    [
        (120, 1, "unset", "was killed by signal 9 after 120 tokens; the request went on 2.00 s later."),
        (0, 2, "unset",
         "was killed by signal 9 before the first token; the request went on 2.00 s later, at the second attempt."),
        (7, 2, "error", "was killed by signal 9 after 7 tokens; the request did not go on in 2.00 s."),
    ],
)  # fmt: skip
def test_that_a_request_was_lost_and_went_on_is_told(
    after: int, attempts: int, status: Literal["unset", "error"], said: str
) -> None:
    resume = span(
        "resume",
        1000,
        3000,
        status=status,
        mlx__resume__after_token=after,
        mlx__resume__attempts=attempts,
        mlx__resume__cause="was killed by signal 9",
    )
    found = only(rules.request_was_resumed, chat_trace(resume, server_ms=9000))
    assert found.sentence.startswith("The engine process " + said)
    assert (found.duration_ns, found.span_id) == (2_000_000_000, id_of("resume"))
