"""The responses that clients may ask for again, in the database: for a time, and within a size."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

import msgspec
from sqlalchemy.exc import IntegrityError

from mlx_manager.database import DATABASE_TROUBLE, Database, DatabaseUnavailable, explain
from mlx_manager.errors import EngineFailed, InvalidRequest, ResponseNotFound
from mlx_manager.mlx_server.audit.instance import this_instance
from mlx_manager.mlx_server.audit.waiting import happens
from mlx_manager.mlx_server.audit.writer import utc_now
from mlx_manager.mlx_server.responses import service
from mlx_manager.mlx_server.responses.tables import StoredResponse
from mlx_manager.wire.openai.responses.items import ItemObject, response_of
from mlx_manager.wire.openai.responses.objects import UNFINISHED, ResponseObject, failure

logger = logging.getLogger(__name__)

SWEEP_S = 3600.0
ABANDONED = EngineFailed(
    "The server that worked on this response ended before it was done. Send the request again."
)


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored response, and the items that its request brought."""

    response: ResponseObject
    input: list[ItemObject]


class ResponseArchive:
    """Keeps responses for `retention_days` and within `max_bytes`; `async with` it for as long as requests come.

    Belongs to one event loop. Every `lease_s / 3` it says that its unfinished responses are still worked on, and looks
    for those of servers that ended without finishing theirs: they have failed. `key_id` is that of the key which asks;
    what was made with another one isn't there for it. All methods raise DatabaseUnavailable.
    """

    def __init__(
        self,
        database: Database,
        *,
        retention_days: float,
        max_bytes: int,
        now: Callable[[], datetime] = utc_now,
        lease_s: float = 30.0,
    ) -> None:
        self._database = database
        self._retention = timedelta(days=retention_days)
        self._max_bytes = max_bytes
        self._now = now
        self._lease_s = lease_s
        self._instance = this_instance()
        self._unfinished = set[str]()
        self._bytes = 0
        self._sweep_at_s = 0.0
        self._is_closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def find(self, response_id: str, key_id: str | None) -> Kept:
        """Return a response. Raises ResponseNotFound."""
        async with self._database.transaction() as session:
            row = await service.find(session, response_id, key_id)
        if row is None:
            raise _not_found(response_id)
        return Kept(_decode(row.response), _decode(row.input))

    async def events(self, response_id: str, key_id: str | None) -> bytes | None:
        """Return the packed events of a response's stream, None when none are kept. Raises ResponseNotFound."""
        async with self._database.transaction() as session:
            found = await service.events(session, response_id, key_id)
        if found is None:
            raise _not_found(response_id)
        return found[0]

    async def history(self, response_id: str | None, key_id: str | None) -> list[ItemObject]:
        """Return all items up to and with a response's output, in order; none for None.

        Raises ResponseNotFound when it or one before it is gone, InvalidRequest when it is no answer.
        """
        if response_id is None:
            return []
        async with self._database.transaction() as session:
            rows = await service.chain(session, response_id, key_id)
        if not rows:
            raise _not_found(response_id, param="previous_response_id")
        missing = rows[0].previous_id
        if missing is not None:
            raise ResponseNotFound(
                f"The conversation of response {response_id!r} is not whole any more: {missing!r}, which it goes on "
                "from, was deleted or has expired. Send the conversation as 'input'.",
                param="previous_response_id",
            )
        items = list[ItemObject]()
        for row in rows:
            response = _decode(row.response)
            _check_answer(response)
            items += [*_decode(row.input), *response["output"]]
        return items

    async def items(self, item_ids: AbstractSet[str], key_id: str | None) -> dict[str, ItemObject]:
        """Return those of the items that are stored, by id: what responses said, and what their requests brought."""
        response_ids = {
            found for item_id in item_ids if (found := response_of(item_id)) is not None
        }
        if not response_ids:
            return {}
        items = list[ItemObject]()
        async with self._database.transaction() as session:
            for response_id in response_ids:
                if (row := await service.find(session, response_id, key_id)) is not None:
                    items += [*_decode(row.input), *_decode(row.response)["output"]]
        return {item["id"]: item for item in items if item["id"] in item_ids}

    async def check_new(self, response_id: str) -> None:
        """Raise InvalidRequest when there is a response of this id."""
        async with self._database.transaction() as session:
            if await service.exists(session, response_id):
                raise _used(response_id)

    async def add(
        self, response: ResponseObject, items: list[ItemObject], key_id: str | None
    ) -> None:
        """Keep a response, finished or not, with the items that its request brought.

        Raises InvalidRequest when another request of the same id was first.
        """
        written, brought = _encode(response), _encode(items)
        is_unfinished = response["status"] in UNFINISHED
        row = StoredResponse(
            id=response["id"],
            created_at=datetime.fromtimestamp(response["created_at"], UTC),
            key_id=key_id,
            previous_id=response["previous_response_id"],
            status=response["status"],
            response=written,
            input=brought,
            size_bytes=len(written) + len(brought),
            instance=str(self._instance) if is_unfinished else None,
            seen_at=self._now() if is_unfinished else None,
        )
        try:
            async with self._database.transaction() as session:
                session.add(row)
        except DatabaseUnavailable as error:
            if isinstance(error.__cause__, IntegrityError):
                raise _used(row.id) from error
            raise
        self._note(response)
        await self._grow(row.size_bytes, row.id)

    async def update(
        self, response: ResponseObject, key_id: str | None, events: bytes | None = None
    ) -> None:
        """Keep what a response has become, with its packed `events` if any; nothing when it was deleted meanwhile."""
        written, grown_bytes = _encode(response), 0
        async with self._database.transaction() as session:
            row = await service.find(session, response["id"], key_id)
            if row is not None:
                grown_bytes = len(written) - len(row.response) + len(events or b"")
                row.response, row.status = written, response["status"]
                row.events = events
                row.size_bytes += grown_bytes
        self._note(response)
        await self._grow(grown_bytes, response["id"])

    async def delete(self, response_id: str, key_id: str | None) -> None:
        """Forget a response. Raises ResponseNotFound."""
        async with self._database.transaction() as session:
            freed_bytes = await service.remove(session, response_id, key_id)
        if freed_bytes is None:
            raise _not_found(response_id)
        self._bytes -= freed_bytes

    async def __aenter__(self) -> Self:
        await self._close_abandoned()
        await self._sweep()
        # An empty context: upkeep is part of no request's trace.
        self._task = asyncio.create_task(
            self._keep_up(), name="upkeep of stored responses", context=Context()
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_closing.set()
        if self._task is not None:
            await self._task

    def _note(self, response: ResponseObject) -> None:
        if response["status"] in UNFINISHED:
            self._unfinished.add(response["id"])
        else:
            self._unfinished.discard(response["id"])

    async def _grow(self, by_bytes: int, newest_id: str) -> None:
        """Count what was written, and make room for a while when it is too much."""
        self._bytes += by_bytes
        excess_bytes = self._bytes - self._max_bytes
        if excess_bytes <= 0:
            return
        async with self._database.transaction() as session:
            least_bytes = excess_bytes + self._max_bytes // 16
            self._bytes -= await service.remove_oldest(session, least_bytes, newest_id)

    async def _keep_up(self) -> None:
        while not await happens(self._is_closing, self._lease_s / 3):
            try:
                await self._renew()
                await self._close_abandoned()
                if time.monotonic() >= self._sweep_at_s:
                    await self._sweep()
            except (DatabaseUnavailable, *DATABASE_TROUBLE) as error:
                cause = error.__cause__ if isinstance(error, DatabaseUnavailable) else error
                logger.warning(
                    "stored responses can't be kept up (%(trouble)s)",
                    {"trouble": explain(cause or error)},
                )

    async def _renew(self) -> None:
        if not self._unfinished:
            return
        async with self._database.transaction() as session:
            await service.keep_unfinished(session, str(self._instance), self._now())

    async def _close_abandoned(self) -> None:
        before = self._now() - timedelta(seconds=self._lease_s)
        async with self._database.transaction() as session:
            for row in await service.unfinished_of_others(session, str(self._instance)):
                is_late = row.seen_at is None or row.seen_at < before
                if is_late or self._instance.sees_end_of(row.instance or ""):
                    response = _decode(row.response)
                    response |= {"status": "failed", "error": failure(ABANDONED)}
                    row.response, row.status = _encode(response), "failed"

    async def _sweep(self) -> None:
        self._sweep_at_s = time.monotonic() + SWEEP_S
        async with self._database.transaction() as session:
            await service.remove_older_than(session, self._now() - self._retention)
            self._bytes = await service.total_bytes(session)


def _not_found(response_id: str, param: str | None = None) -> ResponseNotFound:
    return ResponseNotFound(
        f"There is no stored response {response_id!r}. It was never stored, was deleted, or has expired.",
        param=param,
    )


def _used(response_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"There is a stored response {response_id!r} already. Send each request with an X-Request-ID of its own, or "
        "with none."
    )


def _check_answer(response: ResponseObject) -> None:
    if response["status"] not in ("completed", "incomplete"):
        raise InvalidRequest(
            f"Response {response['id']!r} is {response['status']}: there is no answer to go on from.",
            param="previous_response_id",
        )


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _decode(text: str) -> Any:
    return msgspec.json.decode(text)
