"""Later: runs and batches that start at a time of their own.

The index of queued runs is made anew, so that it leaves out what starts later: with many of them, migrate at a quiet
time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("runs", sa.Column("start_at", TIME, nullable=True))
    op.add_column("runs", sa.Column("starts_later", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("batches", sa.Column("start_at", TIME, nullable=True))
    _index_queued("status = 'queued' AND NOT starts_later")
    op.create_index(
        "runs_to_start", "runs", ["start_at"], postgresql_where=sa.text("status = 'queued' AND starts_later")
    )


def downgrade() -> None:
    op.drop_index("runs_to_start", "runs")
    _index_queued("status = 'queued'")
    op.drop_column("batches", "start_at")
    for column in ("starts_later", "start_at"):
        op.drop_column("runs", column)


def _index_queued(where: str) -> None:
    op.drop_index("runs_queued", "runs")
    op.create_index("runs_queued", "runs", ["pool", "lane", "created_at", "id"], postgresql_where=sa.text(where))
