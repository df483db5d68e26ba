"""Say in words where a trace's time went. Pure: a rule is a function over a trace, and each finding names its span."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mlx_manager.observability import attributes as names
from mlx_manager.observability.span_record import SpanRecord
from mlx_manager.traces.summary import Trace
from mlx_manager.traces.words import bytes_text, count_text, duration_text, plural

# Phases shorter than both are no answer to "why did it take so long".
NOTICEABLE_NS = 1_000_000
NOTICEABLE_SHARE = 0.01
# A pause counts as one when it is this long, and this many times the usual time between two tokens.
LONG_GAP_S = 0.02
LONG_GAP_FACTOR = 4
# How long after its last token an answer may end before its reader is called slow.
SLOW_READER_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason for the time that a trace took; `span_id` is the evidence, `trace_id` another trace that caused it."""

    rule: str
    duration_ns: int
    sentence: str
    span_id: str
    trace_id: str | None = None


QUEUE_REASONS = {
    "places": " for a place in the batch",
    "prompts": " until prompts of others had been read",
    "memory": " for memory",
}
MISS_REASONS = {
    "off": "the prefix cache is switched off",
    "unsupported_model": "this model’s state can’t be brought back",
    "no_snapshot": "no snapshot of this model’s state lies behind more of it",
    "nothing_stored": "nothing was stored yet",
    "prompt_logprobs": "log-probabilities of all of the prompt were asked for",
    "diverged": "no stored prompt begins like it",
    "too_short": "so short a prompt isn’t worth it",
    "no_room": "other models have the memory of stored prompts",
}

Rule = Callable[[Trace], Iterable[Finding]]


def explain(trace: Trace) -> list[Finding]:
    """Return what every rule finds, the longest first."""
    findings = [finding for rule in RULES for finding in rule(trace)]
    return sorted(findings, key=lambda finding: -finding.duration_ns)


def model_was_loaded(trace: Trace) -> Iterator[Finding]:
    """The weights weren't in memory."""
    for span in _noticeable_phases(trace, names.SPAN_MODEL_LOAD):
        took = duration_text(_seconds(span))
        sentence = f"The model was not in memory and had to be loaded first: {took}."
        yield _finding("model-load", span, sentence)


def waited_in_queue(trace: Trace) -> Iterator[Finding]:
    """It wasn't its turn, or there was no room; the links name who had it."""
    for span in _noticeable_phases(trace, names.SPAN_QUEUE):
        waited_s = _seconds(span) - (_grammar_wait_s(span) or 0)
        if waited_s * 1e9 < _least_ns(trace):
            continue
        took = duration_text(waited_s)
        others = [link.trace_id for link in span.links if link.trace_id != span.trace_id]
        behind, shared = f" behind {_traces(others)}" if others else "", ""
        if (shared_s := _number(span, names.QUEUE_SHARED_PREFIX_S)) and others:
            # The first link is to the one that read it.
            read = f"trace {others[0][:8]}… read what both prompts begin with"
            behind, shared = "", f", {duration_text(shared_s)} of it while {read}"
        wanted = _wanted(span) or ("" if others else " for a place in the batch")
        sentence = f"Waited {took} in the queue{behind}{wanted}{shared}{_overtaken(span)}."
        other = others[0] if others else None
        yield Finding("queue", round(waited_s * 1e9), sentence, span.span_id, other)


def waited_for_grammar(trace: Trace) -> Iterator[Finding]:
    """What the answer is held to had to be compiled, or waited for others' that were."""
    for span in _noticeable_phases(trace, names.SPAN_QUEUE):
        waited_s = _grammar_wait_s(span)
        if waited_s is None or waited_s * 1e9 < _least_ns(trace):
            continue
        compile_s = _grammar_number(span, names.GRAMMAR_COMPILE_S)
        compiled = (
            "was known already"
            if compile_s is None
            else f"took {duration_text(compile_s)} to compile"
        )
        sentence = f"Waited {duration_text(waited_s)} for the grammar that the answer is held to, which {compiled}."
        yield Finding("grammar", round(waited_s * 1e9), sentence, span.span_id)


def prompt_was_computed(trace: Trace) -> Iterator[Finding]:
    """How much of the prompt was computed, how much came from the cache, and why not more."""
    for span in _noticeable_phases(trace, names.SPAN_PREFILL):
        computed = _number(span, names.PREFILL_TOKENS)
        cached = _number(span, names.CACHE_MATCHED_TOKENS)
        took = duration_text(_seconds(span))
        if computed is None or cached is None:
            yield _finding("prefill", span, f"Reading the prompt took {took}.")
            continue
        whole = plural(round(computed + cached), "prompt token")
        chat = next((one for one in trace.spans if one.span_id == span.parent_span_id), span)
        said = f"{_cached(span, cached)}{_left_with(chat)}{_restored(span)}"
        sentence = f"Prefill took {took}: {count_text(computed)} of {whole} computed, {said}."
        yield _finding("prefill", span, sentence)


def answer_was_decoded(trace: Trace) -> Iterator[Finding]:
    """How many tokens, how fast, in how wide a batch."""
    for span in _noticeable_phases(trace, names.SPAN_DECODE):
        tokens = _number(span, names.DECODE_TOKENS)
        took = duration_text(_seconds(span))
        if tokens is None:
            yield _finding("decode", span, f"Writing the answer took {took}.")
            continue
        speed = _number(span, names.DECODE_TOKENS_PER_S)
        pace = f" at {speed:,.1f} tokens/s" if speed else ""
        sentence = f"Decoding {plural(round(tokens), 'token')} took {took}{pace}{_in_batch(span)}."
        yield _finding("decode", span, sentence)


def model_thought(trace: Trace) -> Iterator[Finding]:
    """The answer had to wait until the model had done thinking."""
    for span in _phases(trace, names.SPAN_PARSE):
        took_ns = _reasoning_ns(span)
        if took_ns < _least_ns(trace):
            continue
        chat = next(one for one in trace.spans if one.span_id == span.parent_span_id)
        tokens = _number(chat, names.REASONING_TOKENS)
        written = f", {plural(round(tokens), 'token')}," if tokens else ""
        sentence = (
            f"The model reasoned for {duration_text(took_ns / 1e9)}{written} before it answered."
        )
        yield Finding("reasoning", took_ns, sentence, span.span_id)


def inputs_were_computed(trace: Trace) -> Iterator[Finding]:
    """How many tokens became embeddings, in how many steps of the engine."""
    for span in _noticeable_phases(trace, names.SPAN_COMPUTE):
        tokens, batches = _number(span, names.COMPUTE_TOKENS), _number(span, names.COMPUTE_BATCHES)
        took = duration_text(_seconds(span))
        if tokens is None or batches is None:
            yield _finding("compute", span, f"Computing the embeddings took {took}.")
            continue
        work = f"{plural(round(tokens), 'token')} in {plural(round(batches), 'step')}"
        yield _finding("compute", span, f"Computing the embeddings took {took}: {work}.")


def decoding_paused(trace: Trace) -> Iterator[Finding]:
    """One token took far longer than the others."""
    for span in _phases(trace, names.SPAN_DECODE):
        gap_s = _number(span, names.DECODE_LONGEST_GAP_S)
        tokens = _number(span, names.DECODE_TOKENS)
        if gap_s is None or tokens is None or tokens < 3 or gap_s < LONG_GAP_S:
            continue
        # Without the gap itself, which would hide behind the mean that it spoils.
        usual_s = max(0.0, _seconds(span) - gap_s) / (tokens - 2)
        if gap_s < LONG_GAP_FACTOR * usual_s:
            continue
        sentence = (
            f"The longest pause between two tokens was {duration_text(gap_s)}, "
            f"where {duration_text(usual_s)} is usual, {_pause_cause(span, gap_s)}."
        )
        yield Finding("gap", round(gap_s * 1e9), sentence, span.span_id)


def reader_was_slow(trace: Trace) -> Iterator[Finding]:
    """The answer was ready long before its last byte was taken."""
    for server in (span for span in trace.spans if span.kind == "server"):
        ready_ns = max(
            (
                phase.end_ns
                for chat in _children(trace, server)
                if _is_chat(chat) and not chat.attributes.get(names.CANCELLED)
                for phase in _children(trace, chat)
                if phase.name in (names.SPAN_DECODE, names.SPAN_PARSE)
            ),
            default=server.end_ns,
        )
        waited_ns = server.end_ns - ready_ns
        if waited_ns < max(SLOW_READER_NS, NOTICEABLE_SHARE * trace.summary.duration_ns):
            continue
        sentence = (
            f"The answer was complete {duration_text(waited_ns / 1e9)} before its last byte was taken: "
            "the client, or the network to it, reads slowly."
        )
        yield Finding("slow-reader", waited_ns, sentence, server.span_id)


def request_was_resumed(trace: Trace) -> Iterator[Finding]:
    """The engine process ended under the request, or lost it; how long it took until the request went on."""
    for span in _phases(trace, names.SPAN_RESUME):
        how = span.attributes.get(names.RESUME_CAUSE)
        after = round(_number(span, names.RESUME_AFTER_TOKEN) or 0)
        attempts = round(_number(span, names.RESUME_ATTEMPTS) or 0)
        where = f"after {plural(after, 'token')}" if after else "before the first token"
        ended = f"The engine process {how if isinstance(how, str) else 'ended'} {where}"
        took = duration_text(_seconds(span))
        if span.status == "error":
            sentence = f"{ended}; the request did not go on in {took}."
        elif attempts > 1:
            sentence = (
                f"{ended}; the request went on {took} later, at the {_ordinal(attempts)} attempt."
            )
        else:
            sentence = f"{ended}; the request went on {took} later."
        yield _finding("resume", span, sentence)


def prompt_was_tokenized(trace: Trace) -> Iterator[Finding]:
    """Applying the template and encoding."""
    for span in _noticeable_phases(trace, names.SPAN_TOKENIZE):
        took = duration_text(_seconds(span))
        sentence = f"Applying the chat template and encoding the prompt took {took}."
        yield _finding("tokenize", span, sentence)


def request_was_admitted(trace: Trace) -> Iterator[Finding]:
    """Checking who asks, and choosing who answers."""
    servers = {span.span_id for span in trace.spans if span.kind == "server"}
    for span in trace.spans:
        # Beside the chat, and not below it: it decides whether there is one.
        is_check = span.name == names.SPAN_AUTHENTICATE and span.parent_span_id in servers
        if is_check and span.duration_ns >= _least_ns(trace):
            took = duration_text(_seconds(span))
            yield _finding("authenticate", span, f"Checking the key took {took}.")
    for span in _noticeable_phases(trace, names.SPAN_ROUTE):
        took = duration_text(_seconds(span))
        yield _finding("route", span, f"Choosing the backend took {took}.")


def cloud_was_called(trace: Trace) -> Iterator[Finding]:
    """Somebody else's model answered, perhaps because ours had failed. An SDK names its maker, whoever it calls."""
    served = _served_here(trace)
    for span in trace.spans:
        provider = span.attributes.get(names.PROVIDER_NAME)
        if span.kind != "client" or not isinstance(provider, str) or provider == "mlx":
            continue
        if span.span_id in served:
            continue
        model = span.attributes.get(names.REQUEST_MODEL)
        what = f"{provider}’s {model}" if isinstance(model, str) else provider
        took = duration_text(_seconds(span))
        failed = _failed_here_before(trace, span)
        sentence = (
            f"Fell back to {what} when {failed}: that call took {took}."
            if failed
            else f"The call of {what} took {took}."
        )
        yield _finding("cloud", span, sentence)


def work_failed(trace: Trace) -> Iterator[Finding]:
    """The innermost spans that failed: those around them only pass it on."""
    failed = [span for span in trace.spans if span.status == "error"]
    passed_on = {span.parent_span_id for span in failed}
    for span in failed:
        if span.span_id in passed_on:
            continue
        kind = span.attributes.get(names.ERROR_TYPE)
        reason = f" with {kind}" if isinstance(kind, str) else ""
        sentence = f"{span.name} failed{reason} after {duration_text(_seconds(span))}."
        yield _finding("error", span, sentence)


def client_left(trace: Trace) -> Iterator[Finding]:
    """Nobody waited for the end of the answer; said once, of the outermost span that knows."""
    for span in trace.spans:
        if span.attributes.get(names.CANCELLED) is True:
            took = duration_text(_seconds(span))
            yield _finding("cancelled", span, f"The client left after {took}, before the end.")
            return


RULES: tuple[Rule, ...] = (
    work_failed,
    client_left,
    request_was_resumed,
    model_was_loaded,
    waited_in_queue,
    waited_for_grammar,
    prompt_was_computed,
    answer_was_decoded,
    model_thought,
    inputs_were_computed,
    decoding_paused,
    reader_was_slow,
    prompt_was_tokenized,
    request_was_admitted,
    cloud_was_called,
)


def _finding(rule: str, span: SpanRecord, sentence: str, trace_id: str | None = None) -> Finding:
    return Finding(rule, span.duration_ns, sentence, span.span_id, trace_id)


def _served_here(trace: Trace) -> set[str]:
    """The spans below which a server of this trace worked: no cloud, which would tell us nothing of its work."""
    parents = {span.span_id: span.parent_span_id for span in trace.spans}
    served = set[str]()
    for server in (span for span in trace.spans if span.kind == "server"):
        above = server.parent_span_id
        while above is not None and above not in served:
            served.add(above)
            above = parents.get(above)
    return served


def _failed_here_before(trace: Trace, call: SpanRecord) -> str:
    """Say which chat of a local model had failed when a cloud was called; nothing when none had."""
    for span in trace.spans:
        is_ours = _is_chat(span) and span.attributes.get(names.PROVIDER_NAME) == "mlx"
        if is_ours and span.status == "error" and span.end_ns <= call.start_ns:
            kind = span.attributes.get(names.ERROR_TYPE)
            return f"{span.name} failed{f' with {kind}' if isinstance(kind, str) else ''}"
    return ""


def _traces(others: list[str]) -> str:
    more = f" and {plural(len(others) - 1, 'other')}" if len(others) > 1 else ""
    return f"trace {others[0][:8]}…{more}"


def _wanted(span: SpanRecord) -> str:
    """What a request waited for in the queue; nothing where it isn't known."""
    reason, kv_bytes = span.attributes.get(names.QUEUE_REASON), _number(span, names.QUEUE_KV_BYTES)
    if reason == "memory" and kv_bytes is not None:
        return f" for memory: its keys and values may need {bytes_text(kv_bytes)}"
    return QUEUE_REASONS.get(reason, "") if isinstance(reason, str) else ""


def _overtaken(span: SpanRecord) -> str:
    count = _number(span, names.QUEUE_OVERTAKEN)
    if not count:
        return ""
    priority = span.attributes.get(names.QUEUE_PRIORITY)
    why = f"; its priority was {priority}" if isinstance(priority, str) else ""
    return f", while {plural(round(count), 'request')} that came later went first{why}"


def _cached(span: SpanRecord, cached: float) -> str:
    found = f"{count_text(cached)} from the prefix cache" if cached else "none cached"
    reason = span.attributes.get(names.CACHE_MISS_REASON)
    if not isinstance(reason, str):
        return found
    at, place = _number(span, names.CACHE_MISS_TOKEN), span.attributes.get(names.CACHE_MISS_FIELD)
    where = f"at token {count_text((cached if at is None else at) + 1)}"
    if isinstance(place, str):
        where = f"{where}, in {place}"
    if reason == "diverged" and (cached or at):
        return f"{found}, where it leaves what is stored {where}"
    because = f"{found} because {MISS_REASONS.get(reason, _as_words(reason))}"
    return f"{because}; it leaves what is stored {where}" if at else because


def _restored(span: SpanRecord) -> str:
    """How long it waited for what came from files."""
    restore_s = _number(span, names.CACHE_RESTORE_S)
    took = duration_text(restore_s) if restore_s else ""
    return f"; {took} went by until files of the cache were read" if took else ""


def _left_with(chat: SpanRecord) -> str:
    """What a prompt says where it leaves what is stored, if content is recorded."""
    text = chat.attributes.get(names.CACHE_MISS_TEXT)
    stored = chat.attributes.get(names.CACHE_STORED_TEXT)
    if not isinstance(text, str):
        return ""
    instead = f" instead of “{stored}”" if isinstance(stored, str) else ""
    return f", with “{text}”{instead}"


def _pause_cause(span: SpanRecord, gap_s: float) -> str:
    """What the engine knows of the pause, if it was long enough to be marked; else what is likely."""
    for event in span.events:
        if (
            event.name == names.EVENT_STALL
            and event.attributes.get(names.STALL_DURATION_S) == gap_s
        ):
            if event.attributes.get(names.STALL_CAUSE) == names.SPAN_PREFILL:
                return "while prompts of other requests were prefilled"
            return "in which no prompt of another request was prefilled"
    if (_number(span, names.BATCH_WIDTH_MAX) or 1) > 1:
        return "most likely while prompts of other requests were prefilled"
    return "with no other request in its batch"


def _reasoning_ns(span: SpanRecord) -> int:
    """Return how long the model's thoughts took in all; what has no end goes on to the end of the span."""
    total_ns, began_ns = 0, None
    for event in span.events:
        if event.name == names.EVENT_REASONING_BEGAN:
            began_ns = event.at_ns
        elif event.name == names.EVENT_REASONING_ENDED and began_ns is not None:
            total_ns, began_ns = total_ns + event.at_ns - began_ns, None
    return total_ns + (0 if began_ns is None else span.end_ns - began_ns)


def _grammar_wait_s(span: SpanRecord) -> float | None:
    return _grammar_number(span, names.GRAMMAR_WAIT_S)


def _grammar_number(span: SpanRecord, name: str) -> float | None:
    """Return a number of the event that a grammar was ready; None when there was no grammar."""
    for event in span.events:
        if event.name == names.EVENT_GRAMMAR_READY:
            return _as_number(event.attributes.get(name))
    return None


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def _as_words(reason: str) -> str:
    return reason.replace("_", " ").rstrip(".")


def _in_batch(span: SpanRecord) -> str:
    mean, widest = _number(span, names.BATCH_WIDTH_MEAN), _number(span, names.BATCH_WIDTH_MAX)
    if mean is None or widest is None:
        return ""
    if widest <= 1:
        return ", alone in the batch"
    return f", in a batch {mean:.1f} wide on average and {widest:.0f} at most"


def _noticeable_phases(trace: Trace, name: str) -> Iterator[SpanRecord]:
    return (span for span in _phases(trace, name) if span.duration_ns >= _least_ns(trace))


def _least_ns(trace: Trace) -> float:
    return max(NOTICEABLE_NS, NOTICEABLE_SHARE * trace.summary.duration_ns)


def _phases(trace: Trace, name: str) -> Iterator[SpanRecord]:
    """The spans of this name below a chat: another service's span may be called the same."""
    chats = {span.span_id for span in trace.spans if _is_chat(span)}
    return (span for span in trace.spans if span.name == name and span.parent_span_id in chats)


def _is_chat(span: SpanRecord) -> bool:
    return names.OPERATION_NAME in span.attributes


def _children(trace: Trace, parent: SpanRecord) -> Iterator[SpanRecord]:
    return (span for span in trace.spans if span.parent_span_id == parent.span_id)


def _number(span: SpanRecord, name: str) -> float | None:
    return _as_number(span.attributes.get(name))


def _as_number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _seconds(span: SpanRecord) -> float:
    return span.duration_ns / 1e9
