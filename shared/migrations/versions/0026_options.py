"""Options: what callers choose of an agent, within its schema; for a run, and for all of a thread or a batch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

TABLES = ("threads", "batches", "runs")


def upgrade() -> None:
    op.add_column("agents", sa.Column("options_schema", JSONB(), nullable=True))
    for table in TABLES:
        op.add_column(table, sa.Column("options", JSONB(), nullable=True))


def downgrade() -> None:
    for table in TABLES:
        op.drop_column(table, "options")
    op.drop_column("agents", "options_schema")
