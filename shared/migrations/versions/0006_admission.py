"""An index that what waits and what runs is counted over, of a user, of a tenant and in all."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "runs_unfinished_of_a_user",
        "runs",
        ["status", "lane", "tenant", "user_id"],
        unique=False,
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )


def downgrade() -> None:
    op.drop_index("runs_unfinished_of_a_user", "runs")
