"""Incarnations: whoever sees a process die can end its lease, also if the process had been declared dead before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("first_id", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "first_id")
