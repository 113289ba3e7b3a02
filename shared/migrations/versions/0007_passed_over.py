"""An index of the runs that were passed over, because as many of their user or tenant ran as may."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "runs_passed_over",
        "runs",
        ["tenant", "created_at"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND lane = 'interactive' AND due_at = deadline_at"),
    )


def downgrade() -> None:
    op.drop_index("runs_passed_over", "runs")
