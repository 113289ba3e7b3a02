"""Titles: what a thread is called in a list of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("threads", sa.Column("title", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("threads", "title")
