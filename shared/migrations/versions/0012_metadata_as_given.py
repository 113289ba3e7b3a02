"""Metadata as given: metadata of callers is kept as `json`, so that `1e308` stays five characters and a float.

`jsonb` keeps the number as 309 digits, and gives it back as an integer. The tables are written anew: on a large one,
migrate at a quiet time. An index finds the failed and the cancelled runs of a user.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSON, JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

TABLES = ("threads", "runs", "batches")


def upgrade() -> None:
    for table in TABLES:
        op.alter_column(table, "metadata", type_=JSON(), postgresql_using="metadata::json")
    op.create_index(
        "runs_ended_badly_of_a_user",
        "runs",
        ["tenant", "user_id", "status", "created_at", "id"],
        postgresql_where=sa.text("status IN ('failed', 'cancelled')"),
    )


def downgrade() -> None:
    op.drop_index("runs_ended_badly_of_a_user", "runs")
    for table in TABLES:
        op.alter_column(table, "metadata", type_=JSONB(), postgresql_using="metadata::jsonb")
