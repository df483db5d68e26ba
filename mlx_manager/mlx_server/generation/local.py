"""Answer a chat with a model on this machine: the story of a request on one screen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from mlx_manager.chat.events import (
    Adjustment,
    ChatEvent,
    Departure,
    Finished,
    HeldTo,
    Interval,
    Started,
    Timeline,
)
from mlx_manager.chat.request import ChatRequest, Conversation, Operation, Priority, RawPrompt
from mlx_manager.errors import InvalidRequest, PromptTooLong
from mlx_manager.mlx_server.engine.messages import (
    Constraint,
    SamplingParameters,
    Submit,
    ThoughtBudget,
)
from mlx_manager.mlx_server.families.messages import answer_parser
from mlx_manager.mlx_server.families.parser import AnswerParser
from mlx_manager.mlx_server.generation.adjusted import adjustments
from mlx_manager.mlx_server.generation.answer import AnswerReader
from mlx_manager.mlx_server.generation.choices import Row, read_choices, sibling_seeds
from mlx_manager.mlx_server.generation.deadline import Deadline
from mlx_manager.mlx_server.generation.findings import Findings
from mlx_manager.mlx_server.generation.fingerprint import fingerprint
from mlx_manager.mlx_server.generation.grammars import constraint_for
from mlx_manager.mlx_server.generation.leasing import Leasing
from mlx_manager.mlx_server.generation.model_text import ModelText, callable_tools, load_model_text
from mlx_manager.mlx_server.generation.refusals import WhyNot, explained
from mlx_manager.mlx_server.generation.running import RunningRequest, RunningRequests
from mlx_manager.mlx_server.generation.thoughts import ThoughtCounter, thought_budget
from mlx_manager.mlx_server.generation.timing import LocateDeparture, record, recording
from mlx_manager.mlx_server.generation.whereabouts import Part, field_at
from mlx_manager.mlx_server.pool.pool import ModelPool
from mlx_manager.mlx_server.workers.process import EngineProcess
from mlx_manager.mlx_server.workers.stream import TokenStream

# Characters or token ids up to which a prompt is encoded on the event loop: a tenth of a millisecond, where a hop to a
# thread costs more, and many at once wait for each other's interpreter lock.
INLINE_SIZE = 2000
# Nobody sees the pieces of an answer that isn't streamed: it is read in long ones.
WHOLE_ANSWER_WAKE_TOKENS = 64
# Why prompts are computed of which something is stored. Where they leave that, so many tokens are told.
LEFT = ("diverged", "no_snapshot")
MOST_AHEAD_TOKENS = 8
# An answer is seldom as long as it may get, and agents are generous (32,000, 64,000): so much memory is kept for it.
EXPECTED_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Prompt:
    """What goes to the engine for one prompt; `opening` is the part of it that the answer begins with.

    Where the answer `is_begun`, the client has that part, and what follows it in the prompt.

    The answer has `max_tokens` at most, and `expected_tokens` as far as memory is concerned.
    """

    token_ids: list[int]
    max_tokens: int
    expected_tokens: int
    sampling: SamplingParameters
    opening: str
    constraint: Constraint | None
    thought_budget: ThoughtBudget | None
    parts: tuple[Part, ...] = ()
    reordered: tuple[Adjustment, ...] = ()
    is_begun: bool = False


class LocalBackend:
    """A `ChatBackend` over the models of a pool."""

    def __init__(
        self,
        pool: ModelPool,
        time_limits_s: Mapping[Operation, float],
        key_priorities: Mapping[str, Priority] = MappingProxyType({}),
        running: RunningRequests | None = None,
    ) -> None:
        self._models = Leasing(pool, "chat", load_model_text)
        self._time_limits_s = time_limits_s
        self._key_priorities = key_priorities
        self._running = running or RunningRequests()

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Answer `request`; see `ChatBackend`."""
        timeline, deadline = request.timeline, Deadline(self._time_limits_s[request.operation])
        running = RunningRequest(
            request.origin, request.operation, request.model, timeline, deadline
        )
        async with AsyncExitStack() as held:
            held.enter_context(self._running.holding(running))
            async with deadline.kept():
                rows, started, locate, why_not = await self._submit(request, held)
            streams = [tokens for tokens, _reader in rows]
            readers = streams[:: request.choices]
            answer = read_choices(rows, request.choices, timeline.prompt_tokens)
            await held.enter_async_context(aclosing(answer))
            with deadline.kept_by(streams), recording(readers, timeline, locate):
                await _admitted(streams[0], request, why_not)
                timeline.cached_tokens = streams[0].cached_tokens
                yield started
                async for event in answer:
                    if isinstance(event, Finished):
                        # Who watches this stream closes its books on `Finished`, not on our end.
                        record(readers, timeline, locate)
                    yield event

    async def _submit(
        self, request: ChatRequest, held: AsyncExitStack
    ) -> tuple[list[Row], Started, LocateDeparture, WhyNot]:
        """Hold the model in memory as long as `held`, encode the prompts and give them to the engine, all at once."""
        files = await self._models.find(request.model, request.timeline)
        lease, text = await self._models.hold(files, request.timeline, held)
        prompts = await self._prepare(request, text)
        request.timeline.priority = self._priority(request)
        engine = await lease.living_engine()
        engine.check_room(request.answers)
        rows = list[Row]()
        for one, prompt in zip(request.each, prompts, strict=True):
            tokens = generate(engine, one, prompt, text)
            for stream in (tokens, *tokens.siblings):
                await held.enter_async_context(stream)
                rows.append((stream, reader_for(one, text, prompt)))
        mark = None if engine.ready is None else fingerprint(files, engine.ready, text.traits)
        chosen = prompts[0].sampling
        started = Started(text.model_id, request.timeline, mark, chosen.temperature, chosen.top_p)
        why_not = partial(_why_not, engine, text, prompts[0])
        return rows, started, partial(departure, prompts[0].parts, text), why_not

    async def count_tokens(self, request: ChatRequest) -> int:
        """Return the tokens of a prompt; see `TokenCounter`. Takes the model's tokenizer, and not its weights."""
        async with Deadline(self._time_limits_s[request.operation]).kept():
            text = await self._models.text(request.model)
            encoded = await asyncio.to_thread(text.encode, request.input)
        return len(encoded.token_ids)

    async def text(self, model_id: str) -> ModelText:
        """Return a model's text side, without its weights. Raises ModelNotFound, WrongModelKind, ModelLoadFailed."""
        return await self._models.text(model_id)

    async def load(self, model_id: str, timeline: Timeline | None = None) -> None:
        """Bring a model into memory before anybody asks for it. Raises what a request for it would raise."""
        await self._models.load(model_id, timeline)

    def _priority(self, request: ChatRequest) -> Priority:
        """Return what the request says, or else what holds for its key."""
        return request.priority or self._key_priorities.get(request.origin.key_id or "", "normal")

    async def _prepare(self, request: ChatRequest, text: ModelText) -> list[Prompt]:
        timeline = request.timeline
        timeline.tokenize = Interval.begin()
        if is_quick(request):
            prompts = [prepare(request, text)]
        else:
            prompts = await asyncio.to_thread(prepare_each, request, text)
        timeline.prompts = len(prompts)
        timeline.held_to = held_to(request, prompts[0].constraint)
        timeline.prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        longest = min(prompts, key=lambda prompt: prompt.max_tokens)
        timeline.adjusted = adjustments(request, text, longest.max_tokens, longest.reordered)
        timeline.tokenize.end()
        timeline.queued_ns = timeline.tokenize.end_ns
        return prompts


async def _admitted(stream: TokenStream, request: ChatRequest, why_not: WhyNot) -> None:
    """Wait until the engine has taken a sequence. Raises what ended it before, in words about what that comes from."""
    try:
        await stream.admitted()
    except InvalidRequest as refusal:
        raise await explained(refusal, request, why_not) from refusal


async def _why_not(
    engine: EngineProcess, text: ModelText, prompt: Prompt, request: ChatRequest
) -> str | None:
    """Return why an answer can't be held to a request, after the engine, which is asked for one of a token."""
    constraint = await asyncio.to_thread(constraint_for, request, text, prompt.opening)
    least = replace(
        prompt,
        token_ids=prompt.token_ids[:1],
        max_tokens=1,
        expected_tokens=1,
        thought_budget=None,
        parts=(),
    )
    asked = submission(request, replace(least, constraint=constraint), text)
    async with engine.generate(asked) as stream:
        try:
            await stream.admitted()
        except InvalidRequest:
            assert stream.ended is not None, "it was refused"
            return stream.ended.detail
    return None


def is_quick(request: ChatRequest) -> bool:
    """Whether a prompt is encoded at once. Schemas and grammars take as long as their clients make them."""
    tools = request.input.tools if isinstance(request.input, Conversation) else ()
    is_short = request.input.size < INLINE_SIZE and not request.more_prompts
    return is_short and request.format is None and not tools


def prepare_each(request: ChatRequest, text: ModelText) -> list[Prompt]:
    """Render and encode all prompts of a request. Raises what `prepare` raises; runs in a thread."""
    return [prepare(one, text) for one in request.each]


def prepare(request: ChatRequest, text: ModelText) -> Prompt:
    """Render and encode a request of one prompt. Raises PromptTooLong and InvalidRequest."""
    encoded = text.encode(request.input)
    token_ids, place = encoded.token_ids, place_of(request)
    called = place if "[" in place else "The prompt"
    if not token_ids:
        raise InvalidRequest(f"{called} is empty. Send at least one token.", param=place)
    room = text.context_tokens - len(token_ids)
    if room < (request.max_tokens != 0):
        raise PromptTooLong(
            f"{called} has {len(token_ids)} tokens; {text.model_id} takes {text.context_tokens} with the "
            f"answer. Shorten it by {1 - room} or more.",
            param=place,
        )
    max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
    sampling = text.sampling_parameters(request.sampling)
    constraint = constraint_for(request, text, encoded.opening)
    is_certain = request.sampling.ignore_end
    expected_tokens = max_tokens if is_certain else min(max_tokens, EXPECTED_TOKENS)
    return Prompt(
        token_ids,
        max_tokens,
        expected_tokens,
        sampling,
        encoded.opening,
        constraint,
        thought_budget(request, text, encoded.opening),
        encoded.parts,
        encoded.reordered,
        encoded.is_begun,
    )


def held_to(request: ChatRequest, constraint: Constraint | None) -> HeldTo | None:
    """Return what the answers to a request are held to: their format, or the form and the schemas of calls."""
    if constraint is None:
        return None
    if request.format is not None and constraint.param == request.format.param:
        return request.format.kind
    return "tool_calls"


def place_of(request: ChatRequest) -> str:
    """Return where the prompt stands in the client's body."""
    return request.input.place if isinstance(request.input, RawPrompt) else "messages"


def generate(
    engine: EngineProcess, request: ChatRequest, prompt: Prompt, text: ModelText
) -> TokenStream:
    """Give one prompt to the engine, for all its choices. Raises what `EngineProcess.generate` raises."""
    return engine.generate(
        submission(request, prompt, text),
        sibling_seeds=sibling_seeds(prompt.sampling.seed, request.choices),
        wake_tokens=1 if request.stream or request.stop else WHOLE_ANSWER_WAKE_TOKENS,
        owner=request.trace,
    )


def submission(request: ChatRequest, prompt: Prompt, text: ModelText) -> Submit:
    """Return what the engine is asked for; it gives the sequence its id."""
    return Submit(
        sequence_id=0,
        token_ids=prompt.token_ids,
        max_tokens=prompt.max_tokens,
        end_token_ids=list(text.end_token_ids_for(request.sampling)),
        sampling=prompt.sampling,
        top_logprobs=request.sampling.top_logprobs,
        constraint=prompt.constraint,
        priority=request.timeline.priority or "normal",
        key_id=request.origin.key_id,
        expected_tokens=prompt.expected_tokens,
        thought_budget=prompt.thought_budget,
        scores_prompt=scores_prompt(request),
        borders=[part.end for part in prompt.parts],
    )


def departure(parts: Sequence[Part], text: ModelText, reader: TokenStream) -> Departure | None:
    """Return where a prompt that was read has left what is stored; None when all was there, or nothing."""
    if reader.ended is None or reader.ended.stamps.cache_miss_reason not in LEFT:
        return None
    at = reader.ended.stamps.shared_tokens
    return Departure(
        token=at,
        field=field_at(parts, at) if parts else "prompt",
        text=text.decode(reader.work.token_ids[at : at + MOST_AHEAD_TOKENS]),
        stored_text=text.decode(reader.ended.stamps.ahead_token_ids),
    )


def reader_for(request: ChatRequest, text: ModelText, prompt: Prompt) -> AnswerReader:
    """Return what makes events of the tokens of one answer."""
    findings = Findings(text.family.name, request.timeline)
    parser = parser_for(request, text, findings)
    counter = None
    if prompt.thought_budget is not None:
        counter = ThoughtCounter(
            prompt.thought_budget, partial(findings.note, "reasoning_cut", None)
        )
    scored = prompt.token_ids if scores_prompt(request) else ()
    # Where nothing is to be written, not even what was begun for the model is an answer; an echo is.
    opening = "" if parser is not None and request.max_tokens == 0 else prompt.opening
    reader = AnswerReader(text, request.stop, request.sampling, parser, opening, counter, scored)
    if prompt.is_begun:
        reader.skip_beginning()
    return reader


def scores_prompt(request: ChatRequest) -> bool:
    """Whether the answer begins with the prompt, and log-probabilities are asked for."""
    is_echoed = isinstance(request.input, RawPrompt) and request.input.is_echoed
    return is_echoed and request.sampling.top_logprobs is not None


def parser_for(
    request: ChatRequest, text: ModelText, findings: Findings | None = None
) -> AnswerParser | None:
    """Return what reads the answer to a chat; None when it can hold nothing but text."""
    if not isinstance(request.input, Conversation):
        return None
    tools = callable_tools(request.input)
    if not tools and text.family.reasoning is None:
        return None
    findings = findings or Findings(text.family.name, request.timeline)
    is_parallel = request.input.tool_choice.is_parallel
    return answer_parser(text.family, tools, is_parallel=is_parallel, note=findings.note)
