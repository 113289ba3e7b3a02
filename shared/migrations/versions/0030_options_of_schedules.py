"""Options of schedules: what each of their runs chooses of its agent's options."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("schedules", sa.Column("options", JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("schedules", "options")
