"""Call the local backend in the audit log what traces call it."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("UPDATE audit_log SET backend = 'local' WHERE backend = 'mlx'")
