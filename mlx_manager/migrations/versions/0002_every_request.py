"""Let the audit log hold requests that were refused, that still run, and whose server is gone."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UNKNOWN_WHEN_REFUSED: dict[str, sa.types.TypeEngine[Any]] = {
    "operation": sa.String(32),
    "model": sa.String(255),
    "backend": sa.String(32),
    "stream": sa.Boolean(),
    "duration_s": sa.Double(),
}


def upgrade() -> None:
    with op.batch_alter_table("audit_log") as table:
        for column, kind in UNKNOWN_WHEN_REFUSED.items():
            table.alter_column(column, existing_type=kind, nullable=True)
        table.add_column(sa.Column("error_type", sa.String(64), nullable=True))
        table.add_column(sa.Column("instance", sa.String(160), nullable=True))
        table.add_column(sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_audit_log_trace_id", "audit_log", ["trace_id"])
    op.create_index("ix_audit_log_outcome", "audit_log", ["outcome"])
