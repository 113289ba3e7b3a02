"""The customers of the sample agent's bank, with one of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    customers = op.create_table(
        "bank_customers",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("balance", sa.BigInteger, nullable=False),
        sa.Column("pending", sa.BigInteger, nullable=False),
    )
    # Cents: $1245.95 booked and a payment of $122.50 on its way make $1123.45.
    op.bulk_insert(customers, [{"id": 123, "name": "John", "balance": 1245_95, "pending": -122_50}])


def downgrade() -> None:
    op.drop_table("bank_customers")
