"""Examples: queries to begin with, as an agent brings them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    examples = sa.Column("examples", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False)
    op.add_column("agents", examples)


def downgrade() -> None:
    op.drop_column("agents", "examples")
