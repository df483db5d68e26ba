"""How a request of the audit log looks outside."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from mlx_manager.mlx_server.audit.tables import Outcome


class LoggedRequest(BaseModel):
    """One request to the model API. While its outcome is `running`, the end is missing."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    started_at: datetime
    request_id: str
    trace_id: str | None
    endpoint: str
    operation: str | None
    model: str | None
    response_model: str | None
    backend: str | None
    stream: bool | None
    status: int | None
    outcome: Outcome
    error_code: str | None
    error_type: str | None
    duration_s: float | None
    queue_s: float | None
    time_to_first_token_s: float | None
    input_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    finish_reason: str | None
    client_address: str | None
    key_id: str | None
    session_id: str | None
