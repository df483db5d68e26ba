"""What comes back while an answer is made: one `Started`, any number of deltas, one `Finished`.

A failure is an exception out of the stream, never an event.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

FinishReason = Literal["stop", "length", "tool_calls"]
# What the assistant says while it works, and what it says in the end.
Phase = Literal["commentary", "final_answer"]
BETWEEN_MESSAGES = "\n\n"
# A call may have been written in a way that was repaired, in one that could not be, or with more than it has room for.
FindingKind = Literal[
    "reasoning_began",
    "reasoning_cut",
    "reasoning_ended",
    "tool_call_began",
    "tool_call_ended",
    "tool_call_repaired",
    "tool_call_malformed",
    "tool_call_left_out",
]


@dataclass(slots=True)
class Interval:
    """From `start_ns` to `end_ns`, in nanoseconds since the Unix epoch; without an end as long as it lasts."""

    start_ns: int
    end_ns: int | None = None

    @classmethod
    def begin(cls) -> Interval:
        """An interval that begins now."""
        return cls(time.time_ns())

    def end(self) -> None:
        """It ends now."""
        self.end_ns = time.time_ns()


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The span that stands for a request, in OpenTelemetry's numbers: it travels with the request, as a value."""

    trace_id: int
    span_id: int
    flags: int


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: the backend, and the model that it has for it.

    `source` says where the model's files are and `revision` which version of them it is, where that is known; `adapter`
    which adapter its weights are changed by.
    """

    backend: str
    model: str
    source: str | None = None
    revision: str | None = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What bringing a model into memory took; None for what was there before.

    First a process is started, then it reads the weights; the tokenizer is read beside both. `share` of the weights, 0
    to 1, is in memory; `reserved_bytes` are set aside for all that the model needs, and `evicted` models made room.
    """

    weights_bytes: int | None = None
    reserved_bytes: int | None = None
    evicted: tuple[str, ...] = ()
    share: float | None = None
    process_s: float | None = None
    weights_s: float | None = None
    tokenizer_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """An answer stood still after its `after_token`th token; `beside_prefill` when prompts of others were read then."""

    start_ns: int
    duration_ns: int
    after_token: int
    beside_prefill: bool


@dataclass(frozen=True, slots=True)
class Resumption:
    """The engine process ended or lost the request, as `how` says, when the answer had `after_token` tokens.

    A process was given the request `attempts` times until it brought it forward at `resumed_ns`; None: none did.
    """

    lost_ns: int
    resumed_ns: int | None
    after_token: int
    attempts: int
    how: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found in the model's text at `at_ns`.

    `detail` is the tool's name where a call began, and how many characters it is where something was left out.
    """

    kind: FindingKind
    detail: str | int | None
    at_ns: int


@dataclass(frozen=True, slots=True)
class Departure:
    """Where a prompt goes on differently from what is stored of others: at `token`, counted from 0, in `field`.

    `text` is what it says there, `stored_text` what is stored, which is empty where that ends. Both are content.
    """

    token: int
    field: str
    text: str
    stored_text: str


HeldTo = Literal["json_schema", "regex", "grammar", "tool_calls"]


@dataclass(slots=True)
class Parsing:
    """Telling an answer's reasoning and calls from its text, first to last; `family` says by whose marks."""

    family: str
    interval: Interval
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A parameter that has another value than the client sent, or one that it left open, and what that comes from.

    `context` is the room that the model has for an answer, `generation_config` the file of the model's makers, and
    `default` a value of the server's own for requests that say none; `hosted_tool` is one that only the client's
    provider runs, and that is left out; by `canonical_prompts` a part of the prompt has another order, by
    `chat_template` the messages have, where the model's has no place for a system message. A parameter that this
    `chat_template` doesn't read is left out, or is only `on` where that has a switch and no levels. `text_only` are
    models that read no pictures, `no_thoughts` those whose thoughts have no marks that would limit them, and what is
    `unheld` nobody here can do.
    """

    parameter: str
    value: float | Literal["left_out", "reordered", "on"]
    source: Literal[
        "context",
        "generation_config",
        "default",
        "hosted_tool",
        "canonical_prompts",
        "chat_template",
        "text_only",
        "no_thoughts",
        "unheld",
    ]

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:.12g}"
        return f"{self.parameter}={value};by={self.source}"


@dataclass(slots=True)
class Timeline:
    """When each phase of one request happened, and how much work it was.

    Each `ChatRequest` has one, filled in by whoever does the work while it runs: so it says what is known even when
    the request is refused, or the stream ends early. Times are nanoseconds since the Unix epoch; None means that the
    phase wasn't reached. `token_offsets_us` says when every `token_stride`th token came, in microseconds after the
    first. `queue_reason` says what a request that had to wait for its turn waited for, `overtaken` how many that came
    later went first, and `kv_bytes` the memory that its keys and values were predicted to need. For `followed_ns` it
    was in the queue because those of `followed` read what its prompt begins with, too; for `restored_ns` it had left
    the queue, and waited for files of the prefix cache.

    Of several `choices`, or those of several `prompts`, the work is that of all; the times up to the first token are
    those of the choice that had it first, and so are stalls and offsets. A request for embeddings has one, too, without
    tokens but with the `batches` that its inputs were part of. An answer that is held to a grammar waits for it until
    `grammar_ready_ns`; compiling took `grammar_compile_ns`, 0 when the grammar was known. `accepted_tokens` of the
    output were proposed before they were computed, as were others, in `proposed_tokens`. What an answer, or the
    calls in it, must be is `held_to`.
    """

    routing: Interval | None = None
    route: Route | None = None
    model_load: Interval | None = None
    load: Load | None = None
    quantization: str | None = None
    engine_restarts: int | None = None
    tokenize: Interval | None = None
    queued_ns: int | None = None
    grammar_ready_ns: int | None = None
    grammar_compile_ns: int = 0
    waited_behind: tuple[TraceContext, ...] = ()
    priority: Literal["high", "normal", "low"] | None = None
    queue_reason: Literal["places", "prompts", "memory"] | None = None
    overtaken: int = 0
    kv_bytes: int | None = None
    followed: tuple[TraceContext, ...] = ()
    followed_ns: int = 0
    restored_ns: int = 0
    admitted_ns: int | None = None
    first_token_ns: int | None = None
    finished_ns: int | None = None
    prompts: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_miss_reason: str | None = None
    departure: Departure | None = None
    prefill_chunks: int | None = None
    batches: int = 0
    output_tokens: int = 0
    batch_width_sum: int = 0
    batch_width_max: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    longest_gap_ns: int = 0
    stalls: tuple[Stall, ...] = ()
    resumptions: tuple[Resumption, ...] = ()
    token_offsets_us: Sequence[int] = ()
    token_stride: int = 1
    choices: int = 1
    adjusted: tuple[Adjustment, ...] = ()
    parsing: Parsing | None = None
    held_to: HeldTo | None = None

    @property
    def batch_width_mean(self) -> float | None:
        """Mean number of rows that decoded together with this one, itself included; None where it isn't known."""
        if not self.batch_width_sum or not self.output_tokens:
            return None
        return self.batch_width_sum / self.output_tokens


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the engine made them.

    `cached_tokens` are part of `input_tokens`, `reasoning_tokens` part of `output_tokens`.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The engine has taken the request. `model` is the id that answers; `timeline`, the request's, goes on filling.

    `fingerprint` stands for all that computes the answer: with the same one, the same seed gives the same text.
    `temperature` and `top_p` are those that the answer is written with, whoever chose them; None where nobody knows.
    """

    model: str
    timeline: Timeline
    fingerprint: str | None = None
    temperature: float | None = None
    top_p: float | None = None


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token and the natural logarithm of its probability. `data` are its bytes: part of a character, maybe.

    The first token of a prompt has none: nothing stands before it.
    """

    data: bytes
    logprob: float | None

    @property
    def text(self) -> str:
        """The token as text, with U+FFFD for what is no whole character."""
        return self.data.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely the model found a token of the answer, and the tokens that it found most likely, best first.

    The distribution is the model's own, before bias, penalties, temperature and filters. `offset` counts the characters
    of the answer's text before the token. One that `is_echoed` is of the prompt, which the answer repeats.
    """

    token: LikelyToken
    top: tuple[LikelyToken, ...]
    offset: int
    is_echoed: bool = False


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Some more text of the answer; always whole characters.

    `logprobs` are those of the tokens that begin in it, when they were asked for. Where the model's form tells what it
    says while it works from its final answer, `phase` is which of them this is; None: the same as before. Text of
    another message than the one before begins with `BETWEEN_MESSAGES`, which the model did not write.
    """

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    phase: Phase | None = None


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """Some more of what the model thinks before it answers; always whole characters."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """The model calls a tool; its arguments follow. `index` counts the answer's calls from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """Some more of the JSON text of a call's arguments. An answer that is cut short may leave it incomplete."""

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """One of several choices is complete; `stop_string` is the one of the request's that ended it."""

    reason: FinishReason
    stop_string: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete. `stop_string` is the one of the request's that ended it.

    Of several choices it is how the first one ended, and `other_reasons` is how the others did.
    """

    reason: FinishReason
    usage: Usage
    stop_string: str | None = None
    other_reasons: tuple[FinishReason, ...] = ()


Delta = TextDelta | ReasoningDelta | ToolCallStarted | ToolCallDelta


@dataclass(frozen=True, slots=True)
class OfChoice:
    """An event of one of several choices, counted from 0. Where only one was asked for, its events come bare."""

    index: int
    event: Delta | ChoiceFinished


ChatEvent = Started | Delta | OfChoice | Finished


@dataclass(frozen=True, slots=True)
class CalledTool:
    """A call in a whole answer; `arguments` is JSON text, an object unless the answer was cut short."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: what a client that doesn't stream gets.

    `others` are the choices after the first, when several were asked for; `usage` is that of all together.
    """

    model: str
    text: str
    reason: FinishReason
    usage: Usage
    reasoning: str = ""
    tool_calls: tuple[CalledTool, ...] = ()
    stop_string: str | None = None
    fingerprint: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    others: tuple[Answer, ...] = ()


async def collect(events: AsyncIterator[ChatEvent]) -> Answer:
    """Gather a stream into the whole answer. There is no second way to generate."""
    model, fingerprint, choices = "", None, defaultdict[int, _Choice](_Choice)
    async for event in events:
        match event:
            case OfChoice(index, of_choice):
                choices[index].add(of_choice)
            case Started(model=name, fingerprint=mark):
                model, fingerprint = name, mark
            case Finished(reason, usage, stop_string):
                choices[0].add(ChoiceFinished(reason, stop_string))
                answer, *others = (
                    choices[index].answer(model, usage, fingerprint) for index in sorted(choices)
                )
                return replace(answer, others=tuple(others)) if others else answer
            case _:
                choices[0].add(event)
    raise EOFError("the stream ended without a Finished event")


async def without_reasoning(
    events: AsyncGenerator[ChatEvent, None],
) -> AsyncGenerator[ChatEvent, None]:
    """Yield the events of an answer but for what the model thinks; it is counted all the same."""
    async with aclosing(events):
        async for event in events:
            said = event.event if isinstance(event, OfChoice) else event
            if not isinstance(said, ReasoningDelta):
                yield event


class _Choice:
    """Gathers one choice."""

    def __init__(self) -> None:
        self._texts, self._thoughts = list[str](), list[str]()
        self._logprobs = list[TokenLogprobs]()
        self._calls, self._arguments = list[ToolCallStarted](), list[list[str]]()
        self._finished = ChoiceFinished("stop")

    def add(self, event: Delta | ChoiceFinished) -> None:
        match event:
            case TextDelta(text, of_tokens):
                self._texts.append(text)
                self._logprobs.extend(of_tokens)
            case ReasoningDelta(text):
                self._thoughts.append(text)
            case ToolCallStarted():
                self._calls.append(event)
                self._arguments.append([])
            case ToolCallDelta(index, more):
                self._arguments[index].append(more)
            case ChoiceFinished():
                self._finished = event

    def answer(self, model: str, usage: Usage, fingerprint: str | None) -> Answer:
        called = tuple(
            CalledTool(call.id, call.name, "".join(parts))
            for call, parts in zip(self._calls, self._arguments, strict=True)
        )
        return Answer(
            model,
            "".join(self._texts),
            self._finished.reason,
            usage,
            "".join(self._thoughts),
            called,
            self._finished.stop_string,
            fingerprint,
            tuple(self._logprobs),
        )
