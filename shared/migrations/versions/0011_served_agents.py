"""Served agents: a worker registration names the agents that the worker serves, so that its lease vouches for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("agents", ARRAY(sa.Text()), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "agents")
