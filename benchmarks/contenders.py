"""Who is compared: the bare loop, and each server whole and streamed. All take a load and give a `Measured`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import msgspec

from benchmarks.child import Child
from benchmarks.prompts import Prompt, PromptMaker
from benchmarks.servers import HOST, Cpu, Server
from benchmarks.work import Answers, BareRequest, BareTask, ClientTask, Length, Load, Posted

# What a server still does for a request after its answer (an audit row, a cache) is part of its cost.
SETTLE_S = 0.4
CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Measured:
    """One load run once by one contender. `client_cpu_s` is None where there is no client."""

    answers: Answers
    cpu: Cpu
    client_cpu_s: float | None

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of all clients together."""
        return self.answers.tokens / self.answers.wall_s

    @property
    def cpu_s_per_token(self) -> float:
        """CPU seconds of all the contender's processes, its clients' aside."""
        return (self.cpu.api_s + self.cpu.engine_s) / max(self.answers.tokens, 1)


class Contender(Protocol):
    """Can be given a load."""

    name: str

    def run(self, load: Load, seed: int) -> Measured:
        """Run `load` with prompts made from `seed`."""
        ...


class BareContender:
    """The bare loop, in a process of its own.

    Its rows all end in the same step, and all prompts of the next requests are read together: what no clients ever do.
    With `spread` each row ends in a step of its own, as behind HTTP; the work is the same.
    """

    def __init__(
        self, name: str, child: Child, prompts: PromptMaker, *, spread: bool = False
    ) -> None:
        self.name = name
        self._child = child
        self._prompts = prompts
        self._spread = spread

    def run(self, load: Load, seed: int) -> Measured:
        """See `Contender`."""
        dealt = deal(_spread(load) if self._spread else load, seed, self._prompts)
        task = BareTask(
            [
                [BareRequest(prompt.token_ids, length.output_tokens) for prompt, length in own]
                for own in dealt
            ]
        )
        answers = self._child.ask(task)
        return Measured(answers, Cpu(0.0, answers.cpu_s), None)


class ServerContender:
    """A server behind HTTP, with answers whole or streamed; all share one process of clients."""

    def __init__(
        self, name: str, server: Server, clients: Child, prompts: PromptMaker, *, stream: bool
    ) -> None:
        self.name = name
        self._server = server
        self._clients = clients
        self._prompts = prompts
        self._stream = stream

    def run(self, load: Load, seed: int) -> Measured:
        """See `Contender`."""
        posted = [
            [Posted(self._body(prompt, length), length) for prompt, length in own]
            for own in deal(load, seed, self._prompts)
        ]
        task = ClientTask(HOST, self._server.port, CHAT_PATH, posted)
        before = self._server.cpu()
        answers = self._clients.ask(task)
        time.sleep(SETTLE_S)
        return Measured(answers, self._server.cpu().since(before), answers.cpu_s)

    def _body(self, prompt: Prompt, length: Length) -> str:
        options = {"stream_options": {"include_usage": True}} if self._stream else {}
        body = {
            "model": self._server.model_id,
            "messages": [{"role": "user", "content": prompt.text}],
            "max_tokens": length.output_tokens,
            "temperature": 0,
            "stream": self._stream,
            **options,
        }
        return msgspec.json.encode(body).decode()


def deal(load: Load, seed: int, prompts: PromptMaker) -> list[list[tuple[Prompt, Length]]]:
    """Return each client's prompts."""
    made = iter(prompts.make([one.prompt_tokens for own in load.lengths for one in own], seed))
    return [[(next(made), one) for one in own] for own in load.lengths]


def _spread(load: Load) -> Load:
    """Cut each client's first answer in two, at places of their own, and have it send the second part in the end."""
    return Load([_cut(own, client / load.clients) for client, own in enumerate(load.lengths)])


def _cut(lengths: list[Length], share: float) -> list[Length]:
    first, *others = lengths
    begun_tokens = int(first.output_tokens * share)
    if not begun_tokens:
        return lengths
    return [
        Length(first.prompt_tokens, begun_tokens),
        *others,
        Length(first.prompt_tokens, first.output_tokens - begun_tokens),
    ]
