"""Stored responses' columns. They hold what was said, which the server keeps nowhere else unless it is told to."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, MappedAsDataclass, mapped_column

from mlx_manager.database import Base, UtcDateTime
from mlx_manager.wire.openai.responses.objects import Status


class StoredResponse(MappedAsDataclass, Base, kw_only=True):
    """One response as the client was given it, and the items that it sent for it; both are JSON.

    `previous_id` is the response that it goes on from, `key_id` the key that may ask for it. `events` are those of its
    stream where it can be read again, packed. `size_bytes` is what all three take. While it is unfinished, `instance`
    works on it and did so at `seen_at`.
    """

    __tablename__ = "responses"

    id: Mapped[str] = mapped_column(String(160), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    key_id: Mapped[str | None] = mapped_column(String(64), default=None)
    previous_id: Mapped[str | None] = mapped_column(String(160), default=None)
    status: Mapped[Status] = mapped_column(String(16), index=True)
    response: Mapped[str] = mapped_column(Text)
    input: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    instance: Mapped[str | None] = mapped_column(String(160), default=None)
    seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    # Only ever asked for by itself: they may be larger than all the rest.
    events: Mapped[bytes | None] = mapped_column(LargeBinary, default=None, deferred=True)
