"""Tokens of users: whose are void, and who a key is where it names no user."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "user_token_revocations",
        sa.Column("tenant", sa.Text(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), primary_key=True),
        sa.Column("revoked_before", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("user_token_revocations_since", "user_token_revocations", ["revoked_before"])
    op.add_column("api_keys", sa.Column("own_user", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "own_user")
    op.drop_table("user_token_revocations")
