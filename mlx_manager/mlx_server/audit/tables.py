"""The audit log's columns: what is kept of a request, which is never what it said."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import String
from sqlalchemy.orm import Mapped, MappedAsDataclass, mapped_column

from mlx_manager.database import Base, UtcDateTime

Outcome = Literal["running", "completed", "failed", "cancelled", "interrupted"]


class AuditRow(MappedAsDataclass, Base, kw_only=True):
    """One request to the model API: as it ended or, when it takes longer, as it is.

    `status` is the HTTP status that the client was sent: 200 for a stream that fails later, None
    when the client left before there was one. Tokens and times are None where it never got so far,
    and so is what a refused body doesn't tell. `instance` runs the request, and did so at `seen_at`;
    both are None for one that was over before it needed a row.
    """

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    request_id: Mapped[str] = mapped_column(String(255), index=True)
    trace_id: Mapped[str | None] = mapped_column(String(32), index=True, default=None)
    endpoint: Mapped[str] = mapped_column(String(255))
    operation: Mapped[str | None] = mapped_column(String(32), default=None)
    model: Mapped[str | None] = mapped_column(String(255), default=None)
    response_model: Mapped[str | None] = mapped_column(String(255), default=None)
    backend: Mapped[str | None] = mapped_column(String(32), default=None)
    stream: Mapped[bool | None] = mapped_column(default=None)
    status: Mapped[int | None] = mapped_column(default=None)
    outcome: Mapped[Outcome] = mapped_column(String(16), index=True)
    error_code: Mapped[str | None] = mapped_column(String(64), default=None)
    error_type: Mapped[str | None] = mapped_column(String(64), default=None)
    duration_s: Mapped[float | None] = mapped_column(default=None)
    queue_s: Mapped[float | None] = mapped_column(default=None)
    time_to_first_token_s: Mapped[float | None] = mapped_column(default=None)
    input_tokens: Mapped[int | None] = mapped_column(default=None)
    cached_tokens: Mapped[int | None] = mapped_column(default=None)
    output_tokens: Mapped[int | None] = mapped_column(default=None)
    finish_reason: Mapped[str | None] = mapped_column(String(32), default=None)
    client_address: Mapped[str | None] = mapped_column(String(64), default=None)
    key_id: Mapped[str | None] = mapped_column(String(64), default=None)
    session_id: Mapped[str | None] = mapped_column(String(128), default=None)
    instance: Mapped[str | None] = mapped_column(String(160), default=None)
    seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
