"""Reasoning: whether callers are shown what an agent's model thinks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("agents", sa.Column("reasoning", sa.Boolean(), nullable=True))


def downgrade() -> None:
    op.drop_column("agents", "reasoning")
