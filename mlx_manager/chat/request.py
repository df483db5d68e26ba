"""What a client asked for, in words that belong to no API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mlx_manager.chat.events import Phase, Timeline, TraceContext

Role = Literal["system", "user", "assistant", "tool"]
Operation = Literal["chat", "text_completion", "embeddings"]
Priority = Literal["high", "normal", "low"]

# What ids of answers begin with, in the API of an endpoint; elsewhere they are OpenAI's.
ID_PREFIXES: Mapping[str, str] = {"/v1/messages": "msg_", "/v1/responses": "resp_"}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made in an earlier turn; `arguments` is the decoded JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `reasoning` is what the assistant thought before it said `content`.

    `phase` says what that was, where the client knows it: gpt-oss has different channels for the two.

    Of a tool's result `left_out` images and files are not in `content` but for a remark, since no model here reads any.
    """

    role: Role
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None
    left_out: int = 0
    phase: Phase | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments, an object.

    `is_strict` holds the arguments to it. The `name` of one that belongs to a `namespace` has that before it.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    is_strict: bool = False
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What the text of an answer must be: JSON of a schema, a match of a regular expression, or a text of a grammar.

    A grammar is written in Lark's form. `param` is where the client asked for it.
    """

    kind: Literal["json_schema", "regex", "grammar"]
    value: Mapping[str, Any] | str
    param: str


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may call a tool, must call one, or must call the one named `name`; and several at once.

    With `allowed` it is told of all tools, and may call only those of these names.
    """

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    is_parallel: bool = True
    allowed: tuple[str, ...] | None = None

    def allows(self, tool: Tool) -> bool:
        """Whether a tool may be called, if any may."""
        return self.allowed is None or tool.name in self.allowed


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages for the model's chat template, and the tools that it may call.

    `thinking` switches a model's reasoning on or off; None leaves it as the model's template has it.
    `template_arguments` are extra variables for the template, and win over what is said here. `absent_tools` are the
    places in the client's body (`tools[2]`) of tools that only its provider runs: the model isn't told of them. Nobody
    here can do what the parameters in `unheld` ask for. Where the answer `is_begun`, the last message is its beginning.
    """

    messages: tuple[Message, ...]
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    absent_tools: tuple[str, ...] = ()
    unheld: tuple[str, ...] = ()
    is_begun: bool = False
    thinking: bool | None = None

    @property
    def size(self) -> int:
        """Characters of all messages."""
        return sum(len(message.content) for message in self.messages)

    @property
    def left_out(self) -> int:
        """Images and files of all messages that the model is only told of."""
        return sum(message.left_out for message in self.messages)


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A prompt that no template touches: text, or token ids as the client encoded them.

    With `is_echoed` the answer's text begins with it. `place` is where it stands in the client's body (`prompt[2]`).
    """

    prompt: str | tuple[int, ...]
    is_echoed: bool = False
    place: str = "prompt"

    @property
    def size(self) -> int:
        """Characters, or token ids."""
        return len(self.prompt)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. None means: as the model's own generation settings have it, or else not at all.

    `logit_bias` adds to the logits of token ids. `ignore_end` goes on where the model ends its answer, until
    `max_tokens`; with `min_tokens` the model can't end it earlier. `top_logprobs` asks for the log-probability of each
    token and of so many of the most likely ones; 0 is the token's alone. `thinking_tokens` is as long as an answer's
    thoughts may become, without their marks.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int | None = None
    ignore_end: bool = False
    top_logprobs: int | None = None
    thinking_tokens: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where a request came from.

    `request_id` is the one id that headers, audit, errors and traces share; `session` is the conversation that the
    client says it belongs to; `key_id` names the key that it came with, and is not the key. `server` is the address and
    the port that it was taken at, as far as they are known. Each is itself and equals no other: a client may send the
    same id twice.
    """

    request_id: str
    endpoint: str
    client_address: str | None = None
    session: str | None = None
    key_id: str | None = None
    server: tuple[str, int | None] | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Of a request's choices the `count` likeliest are wanted; their log-probabilities only with `shows_logprobs`."""

    count: int
    shows_logprobs: bool


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One answer asked for, or several `choices` of one. `max_tokens`, of each, None: what the context has room for.

    It `has_default_limit` where the client said none and `max_tokens` is its API's own.

    With `more_prompts` the same is asked for of each prompt. Answers count on from one prompt to the next: the first of
    the second has the index `choices`.

    `priority` None leaves it to the key that the request came with.

    Two things are no part of what was asked: in `timeline` whoever answers writes down how far the request came, and
    `trace` is the span of whoever watches, None when nobody does.
    """

    model: str
    input: Conversation | RawPrompt
    origin: Origin
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    has_default_limit: bool = False
    stop: tuple[str, ...] = ()
    format: AnswerFormat | None = None
    stream: bool = False
    priority: Priority | None = None
    choices: int = 1
    selection: Selection | None = None
    more_prompts: tuple[RawPrompt, ...] = ()
    timeline: Timeline = field(default_factory=Timeline, compare=False, repr=False)
    trace: TraceContext | None = field(default=None, compare=False, repr=False)

    @property
    def answers(self) -> int:
        """How many answers there will be, those of all prompts."""
        return self.choices * (1 + len(self.more_prompts))

    @property
    def each(self) -> tuple[ChatRequest, ...]:
        """What is asked for of each prompt, as if it were the only one."""
        if not self.more_prompts:
            return (self,)
        inputs = (self.input, *self.more_prompts)
        return tuple(replace(self, input=one, more_prompts=()) for one in inputs)

    @property
    def operation(self) -> Operation:
        """The operation in the words of the OpenTelemetry GenAI conventions."""
        return "chat" if isinstance(self.input, Conversation) else "text_completion"

    @property
    def left_out(self) -> int:
        """Images and files that the model is only told of."""
        return self.input.left_out if isinstance(self.input, Conversation) else 0

    @property
    def response_id(self) -> str:
        """The answer's id in its API's form, made from the request id so that one leads to the other."""
        openai = "chatcmpl-" if self.operation == "chat" else "cmpl-"
        return f"{ID_PREFIXES.get(self.origin.endpoint, openai)}{self.origin.request_id}"
