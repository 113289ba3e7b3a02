"""History: what was said before a query, where its caller holds the conversation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("history", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "history")
