"""What has become of a failed run that an operator had asked again, and an index of those that wait for that."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("requeued_as", sa.Uuid(), nullable=True))
    op.create_index(
        "runs_dead",
        "runs",
        ["finished_at", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'failed' AND requeued_as IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("runs_dead", "runs")
    op.drop_column("runs", "requeued_as")
