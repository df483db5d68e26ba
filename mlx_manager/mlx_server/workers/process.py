"""Start, watch and end one engine process, and talk to it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from mlx_manager.chat.events import TraceContext
from mlx_manager.errors import MlxManagerError, ModelLoadFailed, Overloaded
from mlx_manager.mlx_server.engine.framing import encode
from mlx_manager.mlx_server.engine.messages import (
    Cancel,
    Embed,
    Ended,
    EngineKind,
    FromEngine,
    Heartbeat,
    LoadFailed,
    Loading,
    Pass,
    Ready,
    Room,
    Sibling,
    Step,
    Submit,
    ToEngine,
    Vitals,
)
from mlx_manager.mlx_server.workers.blas import engine_environment
from mlx_manager.mlx_server.workers.child import how_it_ended, kill, read_line, tell_stacks
from mlx_manager.mlx_server.workers.options import EngineOptions as EngineOptions
from mlx_manager.mlx_server.workers.pulse import Pulse
from mlx_manager.mlx_server.workers.recovery import Recovery
from mlx_manager.mlx_server.workers.reports import Reports
from mlx_manager.mlx_server.workers.resume import Request
from mlx_manager.mlx_server.workers.room import check_memory
from mlx_manager.mlx_server.workers.row_check import Difference, RowCheck
from mlx_manager.mlx_server.workers.stream import TokenStream, engine_ended
from mlx_manager.mlx_server.workers.vectors import VectorStream
from mlx_manager.mlx_server.workers.watch import EngineWatch, NoWatch

logger = logging.getLogger(__name__)

ENGINE_MODULE = "mlx_manager.mlx_server.engine"
EXIT_GRACE_S = 2.0
WATCH_INTERVAL_S = 1.0
# Readers get what has come this often, as often as a screen is drawn, and less often when there are so many that it
# would be more pieces a second than this. Nobody sees the difference from one token at a time, and where tokens come
# faster, one write for several of them is what leaves the engine its cores: docs/decisions/0006.
READERS_WAKE_S = 0.016
MOST_PIECES_PER_S = 2000
# Of those that a request waits behind, so many are told.
MOST_AHEAD = 8


class EngineProcess:
    """One model in a process of its own. Made by `start`, ended by `stop` or by its own death.

    `process_s` is how long the process took to come up before it could begin to read the weights. `has_worked` says
    whether it has ever made a token or a vector. When it ends by itself, or loses its batch, `recovery` is given the
    requests; without one they fail.
    """

    def __init__(
        self,
        model_id: str,
        path: Path,
        options: EngineOptions,
        watch: EngineWatch,
        kind: EngineKind,
        note_loading: Callable[[Loading], None] | None = None,
    ) -> None:
        self.model_id = model_id
        self.ready: Ready | None = None
        self.process_s: float | None = None
        self.vitals: Vitals | None = None
        self._pulse = Pulse(options.stall_timeout_s)
        self._path = path
        self._options = options
        self._watcher = watch
        self._kind = kind
        self._note_loading = note_loading
        # What runs: sequences in a chat engine, requests for vectors in one that makes those.
        self._rows = RowCheck(model_id)
        self.has_worked = False
        self.recovery: Recovery | None = None
        self._streams: dict[int, TokenStream] = {}
        self._vectors: dict[int, VectorStream] = {}
        self._sequence_ids = itertools.count(1)
        self._last_line = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._readers_woken_s = 0.0
        self._readers_timer: asyncio.TimerHandle | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._is_stopping = False

    @classmethod
    async def start(
        cls,
        model_id: str,
        path: Path,
        options: EngineOptions,
        watch: EngineWatch | None = None,
        kind: EngineKind = "chat",
        note_loading: Callable[[Loading], None] | None = None,
    ) -> EngineProcess:
        """Start a process, load the model in `path`, and return when it can generate.

        `note_loading` is told how far the weights have come.
        Raises ModelLoadFailed, with the engine's own words, when it can't or takes longer than `load_timeout_s`.
        """
        engine = cls(model_id, path, options, watch or NoWatch(), kind, note_loading)
        try:
            await engine._spawn()
            await asyncio.wait_for(engine._loaded, options.load_timeout_s)
        except TimeoutError:
            await engine.stop()
            raise ModelLoadFailed(
                f"{model_id} did not load within {options.load_timeout_s:g} s. "
                "Raise MLX_SERVER_LOAD_TIMEOUT_S or choose a smaller model."
            ) from None
        except OSError as error:
            await engine.stop()
            raise ModelLoadFailed(
                f"{model_id} could not be loaded: its process could not be started ({error.strerror})."
            ) from error
        except BaseException:
            await engine.stop()
            raise
        return engine

    @property
    def pid(self) -> int | None:
        """The process id, while there is a process."""
        return self._process.pid if self._process else None

    @property
    def is_alive(self) -> bool:
        """Whether the process is there and its channel open."""
        return self._process is not None and not self._gone.done()

    @property
    def is_stalled(self) -> bool:
        """Whether it has said nothing for `stall_timeout_s`, or that nothing of its work got on for so long."""
        return self._pulse.fault is not None

    @property
    def lived_s(self) -> float:
        """Seconds from its making to what was last heard of it; it speaks once a second even when idle."""
        return self._pulse.heard_s - self._pulse.made_s

    @property
    def row_difference(self) -> Difference:
        """Where the engine's own books and the requests that wait for it last differed."""
        return self._rows.difference

    @property
    def active_sequences(self) -> int:
        """Requests that this process is working on or that wait in it."""
        return len(self._streams) + len(self._vectors)

    async def gone(self) -> str:
        """Wait for the process's end and return how it ended."""
        return await asyncio.shield(self._gone)

    def check_room(self, sequences: int = 1) -> None:
        """Refuse what there is no place for, neither to run nor to wait. Raises Overloaded and EngineFailed."""
        if not self.is_alive:
            raise engine_ended(self.model_id, "ended")
        limit = self._options.max_batch + self._options.max_waiting
        if self.active_sequences + sequences > limit:
            raise Overloaded(
                f"{self.model_id} has {self.active_sequences} requests running and waiting; {limit} is its limit. "
                "Send this one again later, or raise MLX_SERVER_MAX_WAITING.",
                retry_after_s=1,
            )

    def generate(
        self,
        asked: Submit,
        *,
        sibling_seeds: Sequence[int | None] = (),
        wake_tokens: int = 1,
        owner: TraceContext | None = None,
    ) -> TokenStream:
        """Submit a sequence for `owner`, under an id of its own. Use the stream in `async with`.

        With it come as many others, its `siblings`, that go on from the same prompt with other seeds. Raises
        Overloaded, EngineFailed and MemoryExceeded.
        """
        self.check_room(1 + len(sibling_seeds))
        check_memory(self.model_id, self.ready, asked, self._options.kv_budget_bytes)
        ahead = self._ahead(owner)
        submit = msgspec.structs.replace(
            asked,
            sequence_id=next(self._sequence_ids),
            siblings=[Sibling(next(self._sequence_ids), seed) for seed in sibling_seeds],
        )
        stream = TokenStream(submit, self._abandon, wake_tokens, owner, ahead)
        # Kept after it was sent: what can't be encoded raises here and must not count as running.
        self._send(submit)
        self._streams |= {one.sequence_id: one for one in (stream, *stream.siblings)}
        return stream

    def embed(
        self,
        token_ids: list[list[int]],
        dimensions: int | None,
        owner: TraceContext | None = None,
    ) -> VectorStream:
        """Have vectors made, for `owner`. Use the stream in `async with`. Raises Overloaded and EngineFailed."""
        self.check_room()
        embed = Embed(next(self._sequence_ids), token_ids, dimensions)
        stream = VectorStream(embed, self._abandon, owner, self._ahead(owner))
        self._send(embed)
        self._vectors[stream.sequence_id] = stream
        return stream

    def resume(self, request: Request) -> None:
        """Go on with a request that was begun here or in another process, where it was accepted: there is room."""
        self._send(request.resume(next(self._sequence_ids), self._abandon))
        if isinstance(request, TokenStream):
            self._streams[request.sequence_id] = request
        elif isinstance(request, VectorStream):
            self._vectors[request.sequence_id] = request

    def set_room(self, prefix_cache_bytes: int, shared_bytes: int) -> None:
        """Change how much memory is for stored prompts, and for them with keys and values together."""
        if self.ready is None or not self.is_alive:
            return
        kv_budget_bytes = min(self._options.kv_budget_bytes or shared_bytes, shared_bytes)
        self.ready = msgspec.structs.replace(self.ready, kv_budget_bytes=kv_budget_bytes)
        self._send(Room(prefix_cache_bytes, shared_bytes, kv_budget_bytes))

    def end_requests(self, error: MlxManagerError) -> None:
        """Give every request up and let its reader meet `error`."""
        for stream in self._running:
            stream.expire(error)

    async def stop(self) -> None:
        """End the process and wait until it has gone. Requests in flight fail."""
        self._is_stopping = True
        if self._transport is not None:
            self._transport.close()
        if self._process is not None:
            await self._end_process(self._process)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _running(self) -> list[Request]:
        """All that the engine has been given and that hasn't ended, the longest in it first."""
        return [*self._streams.values(), *self._vectors.values()]

    def _ahead(self, owner: TraceContext | None) -> tuple[TraceContext, ...]:
        """The others that `owner` may have to wait for now, the longest in the engine first."""
        owners = (stream.owner for stream in self._running)
        others = (one for one in owners if one is not None and one != owner)
        return tuple(islice(others, MOST_AHEAD))

    async def _end_process(self, process: asyncio.subprocess.Process) -> None:
        try:
            await asyncio.wait_for(process.wait(), EXIT_GRACE_S)
        except TimeoutError:
            kill(process)
            await process.wait()
        self._declare_gone("was stopped")

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        options = self._options
        with theirs:
            # Before the process, so that `stop` closes it when there is none to start.
            self._transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: Reports(self._receive, self._channel_closed), sock=ours
            )
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", ENGINE_MODULE),
                *("--channel", str(theirs.fileno())),
                *("--model", str(self._path)),
                *("--kind", self._kind),
                *options.words(self.model_id),
                pass_fds=[theirs.fileno()],
                # Ctrl-C in the terminal is for this process; it decides when an engine ends.
                start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=engine_environment(os.environ, options.blas_library),
            )
        self._tasks = [
            asyncio.create_task(self._read_output(self._process)),
            asyncio.create_task(self._watch(self._process)),
        ]

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await read_line(process.stdout):
            text = line.decode(errors="replace").rstrip()
            self._last_line = text
            logger.warning(
                "engine says: %(text)s model=%(model)s", {"model": self.model_id, "text": text}
            )

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """End a process that hangs; declare one gone that has ended."""
        exited = asyncio.ensure_future(process.wait())
        faulty_looks = 0
        while not exited.done():
            await asyncio.wait([exited], timeout=WATCH_INTERVAL_S)
            fault = self._pulse.fault if self.ready is not None else None
            faulty_looks = faulty_looks + 1 if fault else 0
            # Not at the first look: when this process was stopped itself (Ctrl-Z, a closed lid), what the engine
            # said in the meantime may still be unread.
            if fault and faulty_looks > 1 and not exited.done():
                logger.error(
                    "engine stalled: %(model)s %(fault)s; ending it",
                    {"model": self.model_id, "fault": fault},
                )
                # First: when it is declared gone its channel is closed, and that ends it.
                await tell_stacks(process)
                self._declare_gone(fault)
                kill(process)
        self._declare_gone(how_it_ended(exited.result()))

    def _channel_closed(self) -> None:
        """A process without its channel is of no use; `_watch` tells everybody how it ended."""
        if self._process is not None and not self._is_stopping:
            kill(self._process)

    def _declare_gone(self, how: str) -> None:
        if self._gone.done():
            return
        self._gone.set_result(how)
        if self._transport is not None:
            self._transport.close()
        self._settle_load(self._load_failure(how))
        self._fail_streams(how)

    def _settle_load(self, failure: MlxManagerError | None) -> None:
        if self._loaded.done():
            return
        if failure is None:
            self._loaded.set_result(None)
        else:
            self._loaded.set_exception(failure)
            self._loaded.exception()  # retrieved: nobody may be waiting any more

    def _fail_streams(self, how: str) -> None:
        streams, self._streams, self._vectors = self._running, {}, {}
        if self.recovery is not None and not self._is_stopping:
            self.recovery.lose(streams, how)
            return
        for stream in streams:
            stream.fail(engine_ended(self.model_id, how))

    def _load_failure(self, how: str) -> MlxManagerError:
        said = f" Its last words: {self._last_line}" if self._last_line else ""
        return ModelLoadFailed(f"{self.model_id} could not be loaded: its process {how}.{said}")

    def _receive(self, message: FromEngine) -> None:
        self._pulse.hear()
        match message:
            case Step():
                self._dispatch(message)
            case Pass():
                self._dispatch_vectors(message)
            case Heartbeat(vitals=vitals):
                self.vitals = vitals
                self._pulse.beat(vitals)
                self._watcher.stepped(self.model_id, vitals.steps)
                self._compare(vitals)
            case Loading():
                if self._note_loading is not None:
                    self._note_loading(message)
            case Ready():
                self.ready = message
                self.process_s = max(self.lived_s - message.load_s, 0.0)
                self._settle_load(None)
            case LoadFailed(text):
                self._settle_load(ModelLoadFailed(f"{self.model_id} could not be loaded: {text}"))

    def _compare(self, vitals: Vitals) -> None:
        """Have rows removed that nobody waits for, and requests computed that have lost theirs."""
        lasting = self._rows.look([*self._streams, *self._vectors], vitals)
        for sequence_id in lasting.orphaned | lasting.unbooked:
            self._send(Cancel(sequence_id))
        missing = list[Request]()
        for sequence_id in lasting.missing:
            request = self._streams.pop(sequence_id, None) or self._vectors.pop(sequence_id)
            missing.append(request)
        if missing and self.recovery is not None:
            self.recovery.lose_batch(missing, "lost its row", self)

    def _dispatch(self, step: Step) -> None:
        streams, at_ns = self._streams, step.at_ns
        self.has_worked = self.has_worked or bool(step.tokens)
        cached = dict(zip(step.cached[::2], step.cached[1::2], strict=True))
        for sequence_id in step.admitted:
            if stream := streams.get(sequence_id):
                has_waited = sequence_id in step.waited
                stream.feed_admitted(at_ns, has_waited, cached.get(sequence_id, 0))
        numbers = iter(step.tokens)
        for sequence_id, token_id in zip(numbers, numbers, strict=True):
            if stream := streams.get(sequence_id):
                stream.feed(token_id, at_ns)
        self._dispatch_logprobs(step)
        self._dispatch_following(step.following)
        self._dispatch_ended(step.ended)
        if step.tokens and self._readers_timer is None:
            self._wake_readers_in_time()

    def _wake_readers_in_time(self) -> None:
        """Wake the readers now, or when it was long enough ago that they were woken."""
        pause_s = max(READERS_WAKE_S, len(self._streams) / MOST_PIECES_PER_S)
        loop, due_s = asyncio.get_running_loop(), self._readers_woken_s + pause_s
        if loop.time() >= due_s:
            self._wake_readers()
        else:
            self._readers_timer = loop.call_at(due_s, self._wake_readers)

    def _wake_readers(self) -> None:
        self._readers_timer = None
        self._readers_woken_s = asyncio.get_running_loop().time()
        for stream in self._streams.values():
            stream.wake_reader()

    def _dispatch_following(self, following: list[int]) -> None:
        for sequence_id, leader_id in zip(following[::2], following[1::2], strict=True):
            stream, leader = self._streams.get(sequence_id), self._streams.get(leader_id)
            if stream is not None and leader is not None:
                stream.feed_following(leader.owner)

    def _dispatch_ended(self, ended: list[Ended]) -> None:
        lost, how = list[Request](), ""
        for one in ended:
            stream = self._streams.pop(one.sequence_id, None)
            if stream is None:
                continue
            if one.reason == "lost" and self.recovery is not None and stream.is_wanted:
                lost.append(stream)
                how = f"lost its batch to {one.detail}"
            else:
                stream.feed_end(one)
        if lost and self.recovery is not None:
            self.recovery.lose_batch(lost, how, self)

    def _dispatch_logprobs(self, step: Step) -> None:
        for one in step.logprobs:
            if stream := self._streams.get(one.sequence_id):
                stream.feed_logprobs(one)
        for one in step.prompt_logprobs:
            if stream := self._streams.get(one.sequence_id):
                stream.prompt_logprobs.append(one)

    def _dispatch_vectors(self, done: Pass) -> None:
        streams = self._vectors
        self.has_worked = self.has_worked or bool(done.vectors)
        for sequence_id in done.admitted:
            if stream := streams.get(sequence_id):
                stream.feed_admitted(done.began_ns, sequence_id in done.waited)
        for vectors in done.vectors:
            if stream := streams.get(vectors.sequence_id):
                stream.feed(vectors)
        for ended in done.ended:
            if stream := streams.pop(ended.sequence_id, None):
                stream.feed_end(ended)

    def _abandon(self, stream: Request) -> None:
        """Tell the engine; the stream counts until the engine says that its row is free."""
        is_known = stream.sequence_id in self._streams or stream.sequence_id in self._vectors
        if is_known and self.is_alive:
            self._send(Cancel(stream.sequence_id))

    def _send(self, message: ToEngine) -> None:
        """Send with all else of this turn of the event loop: what arrives together wakes the engine once."""
        frame = encode(message)
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(frame)

    def _flush(self) -> None:
        frames, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.write(b"".join(frames))
