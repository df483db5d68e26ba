"""Responses that are worked on while nobody waits: they go on when their client leaves, and can be cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

from mlx_manager.chat.events import ChatEvent, Started
from mlx_manager.database import DatabaseUnavailable, explain
from mlx_manager.errors import InvalidRequest, MlxManagerError, ShuttingDown
from mlx_manager.mlx_server.responses.archive import ResponseArchive
from mlx_manager.mlx_server.responses.tape import Tape, unpacked
from mlx_manager.wire.openai.responses.items import ItemObject
from mlx_manager.wire.openai.responses.objects import UNFINISHED, ResponseObject
from mlx_manager.wire.openai.responses.streams import ResponseWriter

logger = logging.getLogger(__name__)

# Seconds between two tries to store a response.
RETRY_S = 2.0
# Seconds that storing may take when the server stops, or somebody waits for it.
LAST_WORDS_S = 5.0


@dataclass(slots=True)
class Job:
    """A response that is being worked on, and whoever works on it; `close_books` is called when it ends.

    `tape` is of one whose stream can be read. `last` are its last events: they wait until the response is stored, so
    that whoever has read them can go on from it.
    """

    writer: ResponseWriter
    events: AsyncGenerator[ChatEvent, None]
    key_id: str | None
    close_books: Callable[[], None]
    tape: Tape | None = None
    last: bytes = b""
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)
    is_cancelled: bool = False
    is_stopped: bool = False
    task: asyncio.Task[None] | None = None


class BackgroundResponses:
    """Holds the tasks of responses in the background; each ends by keeping its response in `archive`."""

    def __init__(self, archive: ResponseArchive) -> None:
        self._archive = archive
        self._jobs: dict[str, Job] = {}

    async def start(self, job: Job, items: list[ItemObject]) -> None:
        """Keep the response as it is, and begin to work on it. `items` are those that its request brought."""
        response = job.writer.response
        await self._archive.add(response, items, job.key_id)
        self._jobs[response["id"]] = job
        job.task = asyncio.create_task(self._work(job), name="response in the background")
        # A task that is cancelled before its first step never gets to the end of its work.
        await job.has_begun.wait()

    async def find(self, response_id: str, key_id: str | None) -> ResponseObject:
        """Return a response as it is now; as over only once it is stored as such. Raises ResponseNotFound."""
        kept = await self._archive.find(response_id, key_id)
        job = self._jobs.get(response_id)
        if job is None:
            return kept.response
        if not job.writer.is_over or job.task is None:
            return job.writer.response
        _, late = await asyncio.wait({job.task}, timeout=LAST_WORDS_S)
        return (
            job.writer.response
            if late
            else (await self._archive.find(response_id, key_id)).response
        )

    async def events(
        self, response_id: str, key_id: str | None, after: int
    ) -> AsyncGenerator[bytes, None]:
        """Return the events of a response's stream behind that of number `after`, as they come or as they came.

        Raises ResponseNotFound, and InvalidRequest for one that was not asked for as a stream in the background.
        """
        # Looked for first: a response that ends meanwhile is stored before it is no job any more.
        job = self._jobs.get(response_id)
        stored = await self._archive.events(response_id, key_id)
        if job is not None and job.tape is not None:
            return job.tape.after(after)
        if stored is not None:
            return unpacked(stored).after(after)
        raise InvalidRequest(
            f"Response {response_id!r} has no stream to read. Only those have one that are asked for with 'background' "
            "and 'stream', from this server. Leave out 'stream'.",
            param="stream",
        )

    async def cancel(self, response_id: str, key_id: str | None) -> ResponseObject:
        """End the work on a response, and return it; one that is over stays as it is.

        Raises ResponseNotFound, and InvalidRequest when it isn't one that can be cancelled here.
        """
        response = await self.find(response_id, key_id)
        if not response["background"]:
            raise InvalidRequest(
                f"Response {response_id!r} does not run in the background. Only those that do can be cancelled."
            )
        await self._end(response_id)
        response = await self.find(response_id, key_id)
        if response["status"] in UNFINISHED:
            raise InvalidRequest(
                f"Response {response_id!r} is worked on by another server on this database. Cancel it there."
            )
        return response

    async def delete(self, response_id: str, key_id: str | None) -> None:
        """Forget a response; work on it ends. Raises ResponseNotFound."""
        await self._archive.find(response_id, key_id)
        await self._end(response_id)
        await self._archive.delete(response_id, key_id)

    async def close(self, grace_s: float) -> None:
        """Give what runs `grace_s` to finish, and end the rest as failed."""
        tasks = {job.task for job in self._jobs.values() if job.task is not None}
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        for job in self._jobs.values():
            _stop(job)
        if late:
            _, late = await asyncio.wait(late, timeout=LAST_WORDS_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self, response_id: str) -> None:
        job = self._jobs.get(response_id)
        if job is None or job.task is None:
            return
        if not job.is_stopped:
            job.is_cancelled = True
            _stop(job)
        await asyncio.wait({job.task})

    async def _work(self, job: Job) -> None:
        job.has_begun.set()
        try:
            await self._answer(job)
            await self._keep(job)
        finally:
            del self._jobs[job.writer.response["id"]]
            if job.tape is not None:
                job.tape.complete()
            job.close_books()

    async def _keep(self, job: Job) -> None:
        """Keep the response as it ended, however long the database is in trouble; then its readers are told."""
        events = await asyncio.to_thread(job.tape.packed, job.last) if job.tape else None
        while True:
            try:
                await self._archive.update(job.writer.response, job.key_id, events)
                break
            except DatabaseUnavailable as error:
                logger.error(
                    "response can't be stored: it waits (%(trouble)s)",
                    {"trouble": explain(error.__cause__ or error)},
                )
            await asyncio.sleep(RETRY_S)
        if job.tape is not None:
            job.tape.add(job.last)

    async def _answer(self, job: Job) -> None:
        """Write the answer, or how it ended instead."""
        try:
            async with aclosing(job.events) as events:
                async for event in events:
                    _write(job, job.writer.see(event))
                    if isinstance(event, Started):
                        # For other servers on this database; how it ends is stored whatever becomes of this.
                        with suppress(DatabaseUnavailable):
                            await self._archive.update(job.writer.response, job.key_id)
        except MlxManagerError as error:
            _write(job, job.writer.fail(error))
        except asyncio.CancelledError:
            _interrupt(job)
        except Exception as error:  # noqa: BLE001 - whoever asks for the response later has to be told
            logger.error(
                "response in the background failed: %(error)s", {"error": type(error).__name__}
            )
            _write(job, job.writer.fail(MlxManagerError("The server failed on this response.")))


def _write(job: Job, frames: bytes) -> None:
    if job.writer.is_over:
        job.last += frames
    elif job.tape is not None:
        job.tape.add(frames)


def _stop(job: Job) -> None:
    """Interrupt the work, but not what comes after it: a response that is over is only being stored.

    Once only: what is cleaned up behind it must not be interrupted as well.
    """
    if job.task is not None and not (job.writer.is_over or job.is_stopped):
        job.is_stopped = True
        job.task.cancel()


def _interrupt(job: Job) -> None:
    if job.writer.is_over:
        return
    if job.is_cancelled:
        _write(job, job.writer.cancel())
    else:
        stopped = "The server was stopped before this response was done. Send it again."
        _write(job, job.writer.fail(ShuttingDown(stopped)))
